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
//
// When an upstream refuses a token with 401, Replace gets another one: one
// token request for each refused token, however many calls were refused.
//
// A user-bound credential has a token for each caller, exchanged for the one the
// caller has shown: TokenFor and its like take the Principal. These tokens are
// kept in a table of their own, bounded in number and age, without a timer or a
// goroutine for each; a call that finds its token near the end has it renewed.
// What one user finds out about an endpoint or the client, all users know; what
// is said of one user stays with that user.
//
// The way of a token request: entry.fly (of a user: user.fly, crowd.exchange),
// client.fetch, exchange.RoundTrip, parseAnswer. golang.org/x/oauth2 lays out
// the request; exchange stands on the wire below it and closes what x/oauth2
// leaves open (redirects, deadlines, sizes, the reading of the answer, what
// errors say).
package tokens
