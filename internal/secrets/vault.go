package secrets

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"os"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/hashicorp/vault/api/auth/approle"
	"github.com/hashicorp/vault/api/auth/kubernetes"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// reLogin is how often a refused read may cause a new login: a role without the
// right to a secret is refused each time, and every login makes a token.
const reLogin = 30 * time.Second

// vaultStore reads the KV version 2 engine of Vault or OpenBao.
type vaultStore struct {
	cfg    policy.VaultStore
	secret sourceOf
	now    func() time.Time
	turn   turn

	// What follows belongs to whoever has the turn.
	client  *api.Client
	login   int           // counts logins; 0 is none
	refused time.Time     // when a refused read last caused a login
	token   string        // the token of somebody else that is in use
	life    time.Duration // of the session's token when it was new; 0 for no end
	renewAt time.Time     // zero for never
	renews  bool
}

func newVault(cfg policy.VaultStore, secret sourceOf, now func() time.Time) *vaultStore {
	return &vaultStore{cfg: cfg, secret: secret, now: now, turn: newTurn()}
}

func (v *vaultStore) read(ctx context.Context, ref policy.SecretRef) (string, time.Duration, error) {
	c, login, good, err := v.session(ctx, 0)
	if err != nil {
		return "", 0, err
	}
	got, err := c.KVv2(ref.Part("mount")).Get(ctx, ref.Part("path"))
	if statusOf(err) == http.StatusForbidden {
		var again int
		if c, again, good, err = v.session(ctx, login); err != nil {
			return "", 0, err
		}
		if again == login {
			return "", 0, answered(http.StatusForbidden, "")
		}
		got, err = c.KVv2(ref.Part("mount")).Get(ctx, ref.Part("path"))
	}
	switch {
	case errors.Is(err, api.ErrSecretNotFound):
		return "", 0, answered(http.StatusNotFound, "")
	case err != nil:
		return "", 0, vaultError(err)
	case got.Data == nil:
		return "", 0, failure("its newest version is deleted; write a new one, or undelete it")
	}
	value, err := text(got.Data, ref.Part("key"))
	return value, good, err
}

// session returns a client with a living token, the number of its login, and the
// time until it wants attention. The session of login number refused is not good
// enough, if a new login is allowed by now.
func (v *vaultStore) session(ctx context.Context, refused int) (*api.Client, int, time.Duration, error) {
	if err := v.turn.take(ctx); err != nil {
		return nil, 0, 0, err
	}
	defer v.turn.give()
	if err := v.connect(); err != nil {
		return nil, 0, 0, err
	}
	if err := v.attend(ctx, refused); err != nil {
		return nil, 0, 0, err
	}
	var good time.Duration
	if !v.renewAt.IsZero() {
		good = max(v.renewAt.Sub(v.now()), time.Second)
	}
	return v.client, v.login, good, nil
}

// attend logs in or renews, when it is time for that.
func (v *vaultStore) attend(ctx context.Context, refused int) error {
	if !v.cfg.Token.IsZero() {
		return v.borrow(ctx)
	}
	now := v.now()
	switch {
	case v.login == 0:
		return v.enter(ctx)
	case refused == v.login && now.Sub(v.refused) >= reLogin:
		v.refused = now
		return v.enter(ctx)
	case v.renewAt.IsZero() || now.Before(v.renewAt):
		return nil
	case v.renews && v.renew(ctx) == nil:
		return nil
	}
	if err := v.enter(ctx); err != nil {
		// A third of the token's life is left: reads go on with it.
		v.renewAt = now.Add(firstRetry)
		if statusOf(err) == 0 || statusOf(err) >= 500 {
			return nil
		}
		return err
	}
	return nil
}

// borrow uses a token that somebody else issues, renewed while that is allowed.
func (v *vaultStore) borrow(ctx context.Context) error {
	token, err := v.secret.own(v.cfg.Token)
	if err != nil {
		return err
	}
	if token == v.token {
		if !v.renewAt.IsZero() && !v.now().Before(v.renewAt) && v.renew(ctx) != nil {
			v.renewAt = v.now().Add(firstRetry)
		}
		return nil
	}
	v.client.SetToken(token)
	self, err := v.client.Auth().Token().LookupSelfWithContext(ctx)
	if status := statusOf(err); err != nil && status != http.StatusForbidden {
		return vaultError(err)
	}
	v.token = token
	v.login++
	v.life, v.renews, v.renewAt = 0, false, time.Time{}
	if err == nil { // a token need not have the right to look at itself
		life, _ := self.TokenTTL()
		if renewable, _ := self.TokenIsRenewable(); renewable {
			v.lives(life, true)
		}
	}
	return nil
}

// enter logs in.
func (v *vaultStore) enter(ctx context.Context) error {
	method, err := v.method()
	if err != nil {
		return err
	}
	got, err := v.client.Auth().Login(ctx, method)
	if err != nil {
		if status := statusOf(err); status >= 400 && status < 500 && status != http.StatusTooManyRequests {
			return &loginError{status, failure("the store refuses the login (%d); check secret_stores.vault.auth", status)}
		}
		return vaultError(err)
	}
	v.login++
	v.lives(time.Duration(got.Auth.LeaseDuration)*time.Second, got.Auth.Renewable)
	v.life = time.Duration(got.Auth.LeaseDuration) * time.Second
	return nil
}

func (v *vaultStore) method() (api.AuthMethod, error) {
	if role := v.cfg.AppRole; role.RoleID != "" {
		id, err := v.secret.own(role.SecretID)
		if err != nil {
			return nil, err
		}
		return approle.NewAppRoleAuth(role.RoleID, &approle.SecretID{FromString: id}, approle.WithMountPath(role.Mount))
	}
	role := v.cfg.Kubernetes
	jwt, err := v.secret.own(role.JWT)
	if err != nil {
		return nil, err
	}
	return kubernetes.NewKubernetesAuth(role.Role, kubernetes.WithServiceAccountToken(jwt), kubernetes.WithMountPath(role.Mount))
}

// renew renews the token. One that comes back with little left of the life it
// began with is near its end, and a new login is due.
func (v *vaultStore) renew(ctx context.Context) error {
	got, err := v.client.Auth().Token().RenewSelfWithContext(ctx, int(v.life/time.Second))
	if err != nil {
		return err
	}
	if got == nil || got.Auth == nil {
		return failure("the store's answer to a renewal has no token")
	}
	left := time.Duration(got.Auth.LeaseDuration) * time.Second
	if v.cfg.Token.IsZero() && left < v.life/3 {
		return failure("the token is near its end")
	}
	v.lives(left, got.Auth.Renewable)
	return nil
}

// lives notes when a token wants to be renewed: when two thirds are over.
func (v *vaultStore) lives(life time.Duration, renewable bool) {
	v.renews, v.renewAt = renewable, time.Time{}
	if life > 0 {
		v.renewAt = v.now().Add(life * 2 / 3)
	}
}

// connect makes the client. The SDK reads VAULT_… variables; what it took from
// them is set back, since the policy says it all.
func (v *vaultStore) connect() error {
	if v.client != nil {
		return nil
	}
	base := transport()
	if v.cfg.CA != "" {
		pem, err := os.ReadFile(v.cfg.CA)
		if err != nil {
			return failure("the file %s of secret_stores.vault.ca cannot be read; correct the path", v.cfg.CA)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return failure("the file %s of secret_stores.vault.ca holds no PEM certificate; correct it", v.cfg.CA)
		}
		base.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	c, err := api.NewClient(&api.Config{
		Address: v.cfg.Address, HttpClient: client(base), Timeout: readTimeout, DisableRedirects: true,
	})
	if err != nil {
		return failure("the client for Vault cannot be made; check secret_stores.vault.address and unset the VAULT_ variables")
	}
	c.ClearToken()
	c.SetHeaders(http.Header{api.RequestHeaderName: {"true"}})
	if v.cfg.Namespace != "" {
		c.SetNamespace(v.cfg.Namespace)
	}
	c.SetWrappingLookupFunc(func(string, string) string { return "" })
	c.SetMaxRetries(0)
	v.client = c
	return nil
}

// loginError is a refused login.
type loginError struct {
	status int
	cause  error
}

func (e *loginError) Error() string { return e.cause.Error() }
func (e *loginError) Unwrap() error { return e.cause }

// statusOf returns the HTTP status of an error, or 0.
func statusOf(err error) int {
	if refused, ok := errors.AsType[*loginError](err); ok {
		return refused.status
	}
	if answer, ok := errors.AsType[*api.ResponseError](err); ok {
		return answer.StatusCode
	}
	return 0
}

func vaultError(err error) error {
	if status := statusOf(err); status != 0 {
		return answered(status, "")
	}
	return err
}
