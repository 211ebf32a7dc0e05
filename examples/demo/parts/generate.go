package parts

//go:generate go test -count=1 -run ^TestFilesAreRendered$ . -update
