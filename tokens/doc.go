// Package tokens gets access tokens from authorization servers and keeps them
// ready, so that a call never waits for one while an old one still lives.
//
//	cache := tokens.New(tokens.Config{Secrets: store, Now: time.Now})
//	defer cache.Close()
//	source, err := cache.Source("protected_server", upstream.Credential.OAuth2)
//	token, err := source.Token(ctx)
//
// Equal credentials share one token, one fetch and one failure. A fetch belongs
// to the cache, not to the call that caused it: a caller that leaves hurts
// nobody. Failures are shared and backed off like successes are cached.
package tokens
