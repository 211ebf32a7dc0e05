package secrets

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// awsStore reads AWS Secrets Manager.
type awsStore struct {
	cfg    policy.AWSStore
	secret sourceOf
	turn   turn
	client *secretsmanager.Client // made by the first who has the turn
}

func (a *awsStore) read(ctx context.Context, ref policy.SecretRef) (string, time.Duration, error) {
	c, err := a.connect(ctx)
	if err != nil {
		return "", 0, err
	}
	name := ref.Part("secret")
	got, err := c.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: &name})
	if err != nil {
		return "", 0, awsError(err)
	}
	value := got.SecretBinary
	if got.SecretString != nil {
		value = []byte(*got.SecretString)
	}
	key := ref.Part("key")
	if key == "" {
		return string(value), 0, nil
	}
	v, err := member(value, key)
	return v, 0, err
}

func (a *awsStore) connect(ctx context.Context) (*secretsmanager.Client, error) {
	if err := a.turn.take(ctx); err != nil {
		return nil, err
	}
	defer a.turn.give()
	if a.client != nil {
		return a.client, nil
	}
	// The SDK puts the authorities of AWS_CA_BUNDLE into a client of its own kind only.
	built := awshttp.NewBuildableClient().WithTransportOptions(func(tr *http.Transport) {
		ours := transport()
		tr.DialContext, tr.ResponseHeaderTimeout, tr.TLSHandshakeTimeout = ours.DialContext, ours.ResponseHeaderTimeout, ours.TLSHandshakeTimeout
	})
	options := []func(*awsconfig.LoadOptions) error{
		awsconfig.WithRegion(a.cfg.Region),
		awsconfig.WithHTTPClient(built),
		awsconfig.WithRetryMaxAttempts(1), // the follower has the patience
	}
	if !a.cfg.AccessKeyID.IsZero() {
		options = append(options, awsconfig.WithCredentialsProvider(aws.CredentialsProviderFunc(a.key)))
	}
	cfg, err := awsconfig.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, failure("the settings of AWS in the environment cannot be used; check AWS_ variables and shared files")
	}
	if made, ok := cfg.HTTPClient.(*awshttp.BuildableClient); ok {
		cfg.HTTPClient = client(made.GetTransport())
	}
	if !a.cfg.AccessKeyID.IsZero() {
		cfg.Credentials = aws.CredentialsProviderFunc(a.key) // without the SDK's cache: a new key counts at once
	}
	a.client = secretsmanager.NewFromConfig(cfg, func(o *secretsmanager.Options) {
		if a.cfg.Endpoint != "" {
			o.BaseEndpoint = aws.String(a.cfg.Endpoint)
		}
	})
	return a.client, nil
}

// key reads the access key of the policy.
func (a *awsStore) key(context.Context) (aws.Credentials, error) {
	id, err := a.secret.own(a.cfg.AccessKeyID)
	if err != nil {
		return aws.Credentials{}, err
	}
	key, err := a.secret.own(a.cfg.SecretAccessKey)
	return aws.Credentials{AccessKeyID: id, SecretAccessKey: key, Source: "policy"}, err
}

// awsError sorts by the error code: AWS answers 400 to nearly everything.
func awsError(err error) error {
	api, ok := errors.AsType[smithy.APIError](err)
	if !ok {
		if _, own := errors.AsType[*storeError](err); !own && strings.Contains(err.Error(), "credentials") {
			return failure("no credentials for AWS were found; give this process a role, or set secret_stores.aws.access_key_id")
		}
		return err
	}
	code := api.ErrorCode()
	switch code {
	case "ResourceNotFoundException":
		return answered(http.StatusNotFound, code)
	case "AccessDeniedException", "AccessDenied", "UnrecognizedClientException", "InvalidClientTokenId", "InvalidSignatureException",
		"SignatureDoesNotMatch", "ExpiredToken", "ExpiredTokenException", "DecryptionFailure", "MissingAuthenticationTokenException":
		return answered(http.StatusForbidden, code)
	case "ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded", "LimitExceededException":
		return answered(http.StatusTooManyRequests, code)
	case "InternalServiceError", "ServiceUnavailable":
		return answered(http.StatusServiceUnavailable, code)
	case "InvalidRequestException":
		return failure("the store refuses the read (%s); the secret may be scheduled for deletion: restore it", code)
	}
	status := http.StatusBadRequest
	if answer, ok := errors.AsType[*smithyhttp.ResponseError](err); ok {
		status = answer.HTTPStatusCode()
	}
	return answered(status, word(code))
}
