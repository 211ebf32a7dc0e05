package secrets

import (
	"context"
	"encoding/base64"
	"errors"
	"hash/crc32"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"
	"cloud.google.com/go/auth/httptransport"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/option"
	"google.golang.org/api/secretmanager/v1"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// gcpStore reads Google Secret Manager.
type gcpStore struct {
	cfg    policy.GCPStore
	secret sourceOf
	turn   turn

	// What follows belongs to whoever has the turn.
	service *secretmanager.Service
	key     string // the service account's key that service uses
}

func (g *gcpStore) read(ctx context.Context, ref policy.SecretRef) (string, time.Duration, error) {
	service, err := g.connect(ctx)
	if err != nil {
		return "", 0, err
	}
	got, err := access(ctx, service, ref.Part("secret"), ref.Part("version"))
	if err != nil {
		return "", 0, gcpError(err)
	}
	if got.Payload == nil {
		return "", 0, failure("it is empty; put a value there")
	}
	value, err := base64.StdEncoding.DecodeString(got.Payload.Data)
	if err != nil || got.Payload.DataCrc32c != 0 && got.Payload.DataCrc32c != int64(crc32.Checksum(value, crc32.MakeTable(crc32.Castagnoli))) {
		return "", 0, failure("the store's answer was changed on its way; check what stands between")
	}
	return string(value), 0, nil
}

func access(ctx context.Context, s *secretmanager.Service, secret, version string) (*secretmanager.AccessSecretVersionResponse, error) {
	name := secret + "/versions/" + version
	if strings.Contains(secret, "/locations/") {
		return s.Projects.Locations.Secrets.Versions.Access(name).Context(ctx).Do()
	}
	return s.Projects.Secrets.Versions.Access(name).Context(ctx).Do()
}

func (g *gcpStore) connect(ctx context.Context) (*secretmanager.Service, error) {
	if err := g.turn.take(ctx); err != nil {
		return nil, err
	}
	defer g.turn.give()
	key := ""
	if !g.cfg.Credentials.IsZero() {
		var err error
		if key, err = g.secret.own(g.cfg.Credentials); err != nil {
			return nil, err
		}
	}
	if g.service != nil && key == g.key {
		return g.service, nil
	}
	creds, err := g.credentials(key)
	if err != nil {
		return nil, err
	}
	c := client(transport())
	if err := httptransport.AddAuthorizationMiddleware(c, creds); err != nil {
		return nil, failure("the client for Google Secret Manager cannot be made; check secret_stores.gcp")
	}
	options := []option.ClientOption{option.WithHTTPClient(c), option.WithLogger(slog.New(slog.DiscardHandler))}
	if g.cfg.Endpoint != "" {
		options = append(options, option.WithEndpoint(g.cfg.Endpoint))
	}
	service, err := secretmanager.NewService(context.WithoutCancel(ctx), options...)
	if err != nil {
		return nil, failure("the client for Google Secret Manager cannot be made; check secret_stores.gcp")
	}
	g.service, g.key = service, key
	return service, nil
}

func (*gcpStore) credentials(key string) (*auth.Credentials, error) {
	options := &credentials.DetectOptions{
		Scopes: []string{secretmanager.CloudPlatformScope}, Client: client(transport()), Logger: slog.New(slog.DiscardHandler),
	}
	if key == "" {
		creds, err := credentials.DetectDefault(options)
		if err != nil {
			return nil, failure("no default credentials of Google were found; give this process a service account, or set secret_stores.gcp.credentials")
		}
		return creds, nil
	}
	creds, err := credentials.NewCredentialsFromJSON(credentials.ServiceAccount, []byte(key), options)
	if err != nil {
		return nil, failure("secret_stores.gcp.credentials is no key of a service account; put its JSON there")
	}
	return creds, nil
}

func gcpError(err error) error {
	if answer, ok := errors.AsType[*googleapi.Error](err); ok {
		return answered(answer.Code, "")
	}
	if login, ok := errors.AsType[*auth.Error](err); ok && login.Response != nil {
		if status := login.Response.StatusCode; status < http.StatusInternalServerError && status != http.StatusTooManyRequests {
			return failure("Google refuses the login (%d); check the credentials of secret_stores.gcp", status)
		}
		return answered(login.Response.StatusCode, "")
	}
	return err
}
