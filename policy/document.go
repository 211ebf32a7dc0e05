package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFile bounds the file before the YAML parser sees it. 10,000 upstreams need about 3 MiB.
const maxFile = 16 << 20

const noAliases = "YAML anchors, aliases and merge keys are refused, a few of them can expand to gigabytes; write the value out, or use defaults"

// document reads the one YAML document of the file. A second one is a fault and
// not ignored: it may hold the rules somebody relies on.
func document(name string, b []byte) (*yaml.Node, Faults) {
	fault := func(line int, text string) (*yaml.Node, Faults) {
		return nil, Faults{{File: name, Line: line, Text: text}}
	}
	if len(b) > maxFile {
		return fault(1, fmt.Sprintf("want at most %d bytes, got %d; split the policy over several processes", maxFile, len(b)))
	}
	dec := yaml.NewDecoder(bytes.NewReader(shield(b)))
	var doc, second yaml.Node
	err := dec.Decode(&doc)
	switch {
	case errors.Is(err, io.EOF) || err == nil && isEmpty(&doc):
		return fault(1, "want a policy, got an empty file; start with version: 1")
	case err != nil:
		return fault(syntax(b, err))
	}
	switch err = dec.Decode(&second); {
	case errors.Is(err, io.EOF):
		unshield(doc.Content[0])
		return doc.Content[0], nil
	case err != nil:
		return fault(syntax(b, err))
	}
	return fault(max(second.Line, 1), "want one YAML document, got a second one; remove the --- and what follows it, or merge the two")
}

func isEmpty(doc *yaml.Node) bool {
	return len(doc.Content) == 0 || doc.Content[0].Kind == yaml.ScalarNode && doc.Content[0].ShortTag() == "!!null"
}

// syntax takes line and text out of an error of the YAML parser. Its text names
// the grammar; the one kind that repeats the file's content is about aliases.
func syntax(b []byte, err error) (int, string) {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if _, after, ok := strings.Cut(text, "unknown anchor '"); ok {
		name, _, _ := strings.Cut(after, "'")
		before, _, _ := bytes.Cut(b, []byte("*"+name))
		return 1 + bytes.Count(before, []byte("\n")), noAliases
	}
	if strings.Contains(text, "anchor") {
		return 1, noAliases
	}
	line := 1
	if after, ok := strings.CutPrefix(text, "line "); ok {
		number, rest, _ := strings.Cut(after, ": ")
		if n, convErr := strconv.Atoi(number); convErr == nil {
			line, text = n, rest
		}
	}
	// yaml.v3 counts lines from 0 in what its grammar reports, from 1 elsewhere.
	if strings.HasPrefix(text, "did not find expected") {
		line++
	}
	line = min(max(line, 1), 1+bytes.Count(b, []byte("\n")))
	return line, "this is not YAML: " + text + "; check indentation, colons and quotes near this line"
}
