package blueprints

import (
	"strings"

	"github.com/hashicorp/hcl/v2"
)

// Source returns where the value of an attribute stands, by the attribute's
// address: "vip.ftp.address", "ftp_service.vsftpd.user.partner.password". That is
// its expression, or the one of the local value, or of the variable in a file,
// that it is no more than a name for. What the blueprint leaves out stands at the
// block around it. A topology that was not loaded has no such places.
func (t *Topology) Source(address string) hcl.Range {
	for {
		if at, ok := t.sources[address]; ok {
			return at
		}
		i := strings.LastIndexByte(address, '.')
		if i < 0 {
			return hcl.Range{}
		}
		address = address[:i]
	}
}

// record notes the places of all blocks and of what is in them. The blueprint has
// no mistake: local values do not go in a circle.
func (l *loader) record() {
	l.topology.sources = map[string]hcl.Range{}
	var visit func(above string, b *block)
	visit = func(above string, b *block) {
		address := above + b.typ
		if b.name != "" {
			address += "." + b.name
		}
		l.topology.sources[address] = b.def
		for name, attr := range b.attrs {
			l.topology.sources[address+"."+name] = l.origin(attr.Expr)
		}
		for _, children := range b.children {
			for _, child := range children {
				visit(address+".", child)
			}
		}
	}
	for _, b := range l.roots {
		visit("", b)
	}
}

// origin is where the value of an expression stands.
func (l *loader) origin(expr hcl.Expression) hcl.Range {
	t, diags := hcl.AbsTraversalForExpr(expr)
	if diags.HasErrors() || len(t) != 2 {
		return expr.Range()
	}
	if name, ok := rootedAt(t, "local"); ok && l.locals[name] != nil {
		return l.origin(l.locals[name].expr)
	}
	if name, ok := rootedAt(t, "var"); ok && l.vars[name] != nil && l.vars[name].source.Filename != "" {
		return l.vars[name].source
	}
	return expr.Range()
}
