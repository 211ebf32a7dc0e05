package rows

// table lists the rules of OAuth as this program keeps them, and the faults that it
// must survive. The series of rules come first: see row.
func table() []series {
	return []series{
		{"Token requests and answers (OAuth)", oauth()},
		{"The MCP side of tokens", mcp()},
		{"Security practices", practices()},
		{"Faults of a token endpoint", endpoint()},
		{"Outages and recovery", outages()},
	}
}

func oauth() []row {
	return []row{
		{id: "O1", what: "a token request is a POST of one form: nothing in the URL, nothing twice, nothing empty, one client authentication", only: "TestO1_O2_O3_U1_T7_TheRequest TestO1_HowARequestIsMade"},
		{id: "O2", what: "Basic form-encodes id and secret, or sends them raw where the policy says so", only: "TestO1_O2_O3_U1_T7_TheRequest TestO2_Vector TestT7_O2_RawBasic"},
		{id: "O3", what: "no secret in a URL, no redirect, TLS verified, time and size bounded", only: "TestO1_O2_O3_U1_T7_TheRequest TestT1_T2_T3_O3_O11_O12_O13_EveryFault TestO3_NoCookieComesBack", also: "TestT4_TLS TestT3_AMemoryBoundForHugeAnswers"},
		{id: "O4", what: "a client assertion: the issuer as its only audience, a minute long, typed, used once", only: "TestO4_U5_EveryKeyAndAlgorithm TestO4_Claims TestO4_TheTypSwitch TestO4_ANewKeyIsUsedAtTheNextFetch TestO4_TheServersAlgorithms TestO4_U9_BothClientsProveThemselves TestO4_WhatAssertionsAreRefused TestS4_O4_KeysThatCannotSign"},
		{id: "O5", what: "the assertion of the jwt_bearer grant goes as it is: its audience is not ours to choose", only: "TestO5_O6_U9_U10_U1_TheRequests TestU12_O5_TheAudienceIsThePlatforms"},
		{id: "O6", what: "a token exchange names its types, and takes no other than it asked for", only: "TestO5_O6_U9_U10_U1_TheRequests TestO6_U10_U11_O12_WrongAnswers TestO6_WhatExchangesAreRefused"},
		{id: "O7", what: "invalid_target is final for that resource at that server", only: "TestO7_InvalidTarget"},
		{id: "O8", what: "client certificates: the client_id goes along, the alias of the endpoint is used", only: "TestO8_ClientCertificates TestO8_ANewCertificateIsUsedAtTheNextFetch TestO8_TheAlias TestS4_O8_CertificatesThatCannotBeShown"},
		{id: "O9", what: "a DPoP token is refused, and never sent as Bearer; no proof is made", only: "TestO9_DPoP TestO9_DPoPNonce TestT1_T2_O9_O11_O20_EveryFault"},
		{id: "O10", what: "a key before a secret, and tokens for one resource", only: "TestO10_TheBetterWayFirst"},
		{id: "O11", what: "an answer is one JSON object, read to the letter; an error in a 200 is an error"},
		{id: "O12", what: "no token of another type than Bearer"},
		{id: "O13", what: "no token that is no b64token"},
		{id: "O14", what: "no life without an end, and none that is believed beyond the policy's"},
		{id: "O15", what: "one cached token for one credential and one user"},
		{id: "O16", what: "one request at a time, shared by all who wait; refreshed ahead; a failed refresh hurts no living token"},
		{id: "O17", what: "permanent errors are not asked again until something changes"},
		{id: "O18", what: "a refused token is dropped, that very one, and replaced by one request", also: "TestO20_RejectedTokenLeavesTheFleet TestO20_RejectedTokenIsEvictedInAnOutage TestO20_AfterARestart"},
		{id: "O19", what: "a refresh_token is ignored"},
		{id: "O20", what: "what an authorization server says is cut and filtered for the log, and not told to callers", only: "TestO20_CleanDescription TestT1_T2_O9_O11_O20_EveryFault"},
	}
}

func mcp() []row {
	return []row{
		{id: "U1", what: "each token request names the resource, in canonical form"},
		{id: "U2", what: "metadata is looked for in the order of the specifications; only a 404 leads on"},
		{id: "U3", what: "the issuer of a document is the one that was asked, to the letter"},
		{id: "U4", what: "a credential goes to the issuer of the policy, whatever an upstream says", also: "TestCheckDiscover"},
		{id: "U5", what: "how the client proves itself is read, never tried out"},
		{id: "U6", what: "extensions are declared in the body, by the caller", untested: "the proxy writes no bodies"},
		{id: "U7", what: "a token is in Authorization and nowhere else"},
		{id: "U8", what: "scopes are those of the policy; no challenge makes them grow"},
		{id: "U9", what: "enterprise-managed authorization, step 1: the ID-JAG", also: "TestCheckDiscoversCallersAndIdentityProviders"},
		{id: "U10", what: "step 2: the ID-JAG is typed, and for one audience"},
		{id: "U11", what: "an ID-JAG is used once, and never injected"},
		{id: "U12", what: "workload identity: the file is read at every use, a refusal is final"},
	}
}

func practices() []row {
	return []row{
		{id: "S1", what: "https only, and no private address that somebody else's document named", only: "TestS1_PrivateAddresses TestS1_AllowPrivate TestU2_U3_S1_BadMetadata"},
		{id: "S2", what: "no credential is lent to everybody unless the policy says so in words", also: "FuzzParse TestWarnings TestBadFiles"},
		{id: "S3", what: "the least scopes: those of each upstream, and no more", only: "TestU7_U8_S3_NoMoreThanThePolicySays", also: "TestO15_T9_EveryPartIsInTheKey"},
		{id: "S4", what: "no secret, token or assertion in any output"},
		{id: "S5", what: "tokens are kept in memory, or sealed", also: "TestO6_SealedForOnePlace TestO6_Secrets"},
		{id: "S6", what: "no policy, no token, a bad reload: refused, or as before", only: "TestS6NothingIsServedBeforeAPolicyIsLoaded", also: "TestO8_RandomMutations"},
	}
}

func endpoint() []row {
	return []row{
		{id: "T1", what: "every odd answer comes to a good token or a named error, with the real Envoy too"},
		{id: "T2", what: "redirects are refused; the other host sees nothing"},
		{id: "T3", what: "slow, endless, huge and packed answers are bounded"},
		{id: "T4", what: "failures of TLS, DNS and the line have a word each, and losses are felt by no call"},
		{id: "T5", what: "Retry-After is obeyed, up to a cap"},
		{id: "T6", what: "permanent errors: at most 10 requests in 10 minutes"},
		{id: "T7", what: "secrets of any characters"},
		{id: "T8", what: "1,000 callers, one request"},
		{id: "T9", what: "keys of the cache do not collide"},
		{id: "T10", what: "clocks that step neither kill nor revive a token; the skew is measured", also: "TestMetrics"},
	}
}

func outages() []row {
	return []row{
		{id: "O1", what: "without the authorization server the process starts, and serves what needs none"},
		{id: "O2", what: "an hour of outage: nothing is felt while a token lives, then few requests and a quick end"},
		{id: "O3", what: "errors, hangs and slowness are hidden by the refresh ahead"},
		{id: "O4", what: "a 401 heals inside the call, or evicts for the next one; a 403 never does"},
		{id: "O5", what: "what many have in common is asked once; an upstream that refuses everything is bounded"},
		{id: "O6", what: "the shared cache may be down, slow, wrong or poisoned"},
		{id: "O7", what: "one refresh among replicas, also when its maker dies"},
		{id: "O8", what: "broken, half-written, swapped or lost files change nothing, and good ones count within seconds"},
		{id: "O9", what: "secrets rotate; a store that is down or sealed leaves the last good one"},
		{id: "O10", what: "a full disk or a log that nobody reads holds up no call; with `audit: {required: true}` it refuses it", also: "TestLogNeverHoldsUpTheCaller TestRefusalsCannotFillTheDisk"},
	}
}
