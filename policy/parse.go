package policy

import (
	"path/filepath"
	"reflect"
)

// Parse reads a policy file and checks all of it. The name is what faults call
// the file; its directory is what relative paths in the file start from. The
// function env looks up the variables of ${NAME} and {env: NAME}, as
// os.LookupEnv does. Parse reads no other file, and no secret becomes part of
// the Set.
//
// The error is of type Faults and holds every fault, in line order.
func Parse(name string, b []byte, env func(string) (string, bool)) (*Set, error) {
	root, faults := document(name, b)
	if faults != nil {
		return nil, faults
	}
	d := newDecoder(name, filepath.Dir(name), env)
	var f File
	d.at[""] = mark{line: 1, node: root}
	d.value(root, "", reflect.ValueOf(&f).Elem())
	c := &checker{decoder: d, f: &f}
	c.file()
	if len(d.faults) > 0 {
		return nil, d.faults.inLineOrder()
	}
	set := c.compile()
	// The indexes know of clashes too. The checks above name them with their
	// lines; what only the indexes find is refused all the same.
	for _, clash := range set.index() {
		d.fault(join("upstreams", clash.second.Name), "its Envoy %s is also that of upstream %s; give each its own", clash.kind, show(clash.first.Name))
	}
	if len(d.faults) > 0 {
		return nil, d.faults.inLineOrder()
	}
	return set, nil
}
