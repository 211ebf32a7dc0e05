package envoy

// header opens the rendered file.
func header() string {
	return "x"
}

func bootstrapComments() []comment { return nil }
