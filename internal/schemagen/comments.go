package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"strings"
)

// comments maps "Type" and "Type.Field" to what the source says about it.
type comments map[string]string

// readComments reads the comments of every type and field in Go files. One
// that is missing is an error: the comment is the documentation.
func readComments(files []string) (comments, error) {
	words := comments{}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		if err := words.types(parsed); err != nil {
			return nil, err
		}
	}
	return words, nil
}

func (c comments) types(parsed *ast.File) error {
	for _, decl := range parsed.Decls {
		group, ok := decl.(*ast.GenDecl)
		if !ok || group.Tok != token.TYPE {
			continue
		}
		for _, spec := range group.Specs {
			typ, ok := spec.(*ast.TypeSpec)
			if !ok {
				continue
			}
			c[typ.Name.Name] = oneLine(group.Doc.Text())
			if err := c.fields(typ); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c comments) fields(typ *ast.TypeSpec) error {
	structure, ok := typ.Type.(*ast.StructType)
	if !ok {
		return nil
	}
	for _, field := range structure.Fields.List {
		tagged := field.Tag != nil && strings.Contains(field.Tag.Value, "yaml:")
		for _, name := range field.Names {
			text := oneLine(field.Doc.Text())
			if tagged && !strings.HasPrefix(text, name.Name+" ") {
				return fmt.Errorf("%s.%s: want a comment that starts with the field's name, got %q", typ.Name.Name, name.Name, text)
			}
			c[typ.Name.Name+"."+name.Name] = text
		}
	}
	return nil
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// field returns the comment of a field with the key in place of the Go name.
func (c comments) field(owner reflect.Type, f reflect.StructField) string {
	rest := strings.TrimPrefix(c[owner.Name()+"."+f.Name], f.Name)
	return "`" + f.Tag.Get("yaml") + "`" + rest
}

// block returns the comment of a type without the Go name before it.
func (c comments) block(t reflect.Type) string {
	text := strings.TrimPrefix(c[t.Name()], t.Name()+" ")
	text = strings.TrimPrefix(text, "is ")
	if text == "" {
		return ""
	}
	return strings.ToUpper(text[:1]) + text[1:]
}

// keyed returns the fields of a block that have a key in the file, in order.
func keyed(t reflect.Type) []reflect.StructField {
	var fields []reflect.StructField
	for f := range t.Fields() {
		if key := f.Tag.Get("yaml"); key != "" && key != "-" {
			fields = append(fields, f)
		}
	}
	return fields
}
