package e2e_test

func runScripted(string, string) error { return nil }
