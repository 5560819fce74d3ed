package blueprints

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/hashicorp/hcl/v2/ext/tryfunc"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
)

// mark is what a value carries through every expression that it enters.
type mark string

const (
	sensitive mark = "sensitive" // must not be shown
	outside   mark = "outside"   // was read from a file: not a literal of the blueprint
)

// maxFile bounds what file() reads, so that a device or a mistyped path cannot fill the memory.
const maxFile = 1 << 20

// secretName matches names whose values are taken for secrets wherever they come from.
var secretName = regexp.MustCompile(`(?i)passw|passphrase|passcode|(^|_)pass(_|$)|secret|token|credential|private_?key|api_?key`)

// callError is an error of our own functions that has its own code.
type callError struct{ code, summary, detail string }

func (e *callError) Error() string { return e.summary + ": " + e.detail }

// functions are those that an expression may call.
func (l *loader) functions() map[string]function.Function {
	all := map[string]function.Function{
		"can_ipv4":      predicate(func(s string) bool { a, err := netip.ParseAddr(s); return err == nil && a.Is4() }),
		"cidr_contains": cidrContains,
		"cidrhost":      cidrHost,
		"default":       defaultValue,
		"env":           l.env(),
		"file":          l.file(),
		"filesha256":    l.fileSHA256(),
		"nonsensitive":  nonsensitive,
		"ports":         ports,
		"sensitive":     l.sensitive(),

		"abs": stdlib.AbsoluteFunc, "ceil": stdlib.CeilFunc, "chomp": stdlib.ChompFunc,
		"chunklist": stdlib.ChunklistFunc, "coalesce": stdlib.CoalesceFunc, "coalescelist": stdlib.CoalesceListFunc,
		"compact": stdlib.CompactFunc, "concat": stdlib.ConcatFunc, "contains": stdlib.ContainsFunc,
		"csvdecode": stdlib.CSVDecodeFunc, "distinct": stdlib.DistinctFunc, "element": stdlib.ElementFunc,
		"flatten": stdlib.FlattenFunc, "floor": stdlib.FloorFunc, "format": stdlib.FormatFunc,
		"formatlist": stdlib.FormatListFunc, "index": stdlib.IndexFunc, "join": stdlib.JoinFunc,
		"jsondecode": stdlib.JSONDecodeFunc, "jsonencode": stdlib.JSONEncodeFunc, "keys": stdlib.KeysFunc,
		"length": stdlib.LengthFunc, "lookup": stdlib.LookupFunc, "lower": stdlib.LowerFunc,
		"max": stdlib.MaxFunc, "merge": stdlib.MergeFunc, "min": stdlib.MinFunc,
		"parseint": stdlib.ParseIntFunc, "range": stdlib.RangeFunc, "regex": stdlib.RegexFunc,
		"regexall": stdlib.RegexAllFunc, "replace": stdlib.ReplaceFunc, "reverse": stdlib.ReverseListFunc,
		"setproduct": stdlib.SetProductFunc, "slice": stdlib.SliceFunc, "sort": stdlib.SortFunc,
		"split": stdlib.SplitFunc, "strlen": stdlib.StrlenFunc, "substr": stdlib.SubstrFunc,
		"title": stdlib.TitleFunc, "trim": stdlib.TrimFunc, "trimprefix": stdlib.TrimPrefixFunc,
		"trimspace": stdlib.TrimSpaceFunc, "trimsuffix": stdlib.TrimSuffixFunc, "upper": stdlib.UpperFunc,
		"values": stdlib.ValuesFunc, "zipmap": stdlib.ZipmapFunc,
		"tobool": stdlib.MakeToFunc(cty.Bool), "tonumber": stdlib.MakeToFunc(cty.Number), "tostring": stdlib.MakeToFunc(cty.String),
	}
	for name, f := range all {
		all[name] = discreet(f)
	}
	all["try"], all["can"] = tryfunc.TryFunc, tryfunc.CanFunc // closures over expressions: nothing to keep quiet about
	return all
}

// discreet returns a function that does as f does, but whose errors do not quote
// its arguments when one of them is sensitive.
func discreet(f function.Function) function.Function {
	open := func(p function.Parameter) function.Parameter {
		p.AllowMarked, p.AllowNull, p.AllowUnknown, p.AllowDynamicType = true, true, true, true
		return p
	}
	spec := &function.Spec{}
	for _, p := range f.Params() {
		spec.Params = append(spec.Params, open(p))
	}
	if p := f.VarParam(); p != nil {
		o := open(*p)
		spec.VarParam = &o
	}
	hush := func(args []cty.Value, err error) error {
		if err == nil {
			return nil
		}
		for i, a := range args {
			if isSensitive(a) {
				if errors.As(err, &function.ArgError{}) {
					return function.NewArgErrorf(i, "not accepted, and not shown because it is sensitive")
				}
				return errors.New("a sensitive argument was not accepted; it is not shown")
			}
		}
		return err
	}
	spec.Type = func(args []cty.Value) (cty.Type, error) {
		t, err := f.ReturnTypeForValues(args)
		return t, hush(args, err)
	}
	spec.Impl = func(args []cty.Value, _ cty.Type) (cty.Value, error) {
		v, err := f.Call(args)
		return v, hush(args, err)
	}
	return function.New(spec)
}

// isSensitive tells whether any part of v must not be shown.
func isSensitive(v cty.Value) bool { return v.HasMarkDeep(sensitive) }

func text(name string) function.Parameter {
	return function.Parameter{Name: name, Type: cty.String}
}

func predicate(ok func(string) bool) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{text("value")},
		Type:   function.StaticReturnType(cty.Bool),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			return cty.BoolVal(ok(args[0].AsString())), nil
		},
	})
}

// env(name) is the variable's value, sensitive. env(name, default) is the default where the
// variable is not set; it is sensitive only if the name reads like a secret's.
func (l *loader) env() function.Function {
	return function.New(&function.Spec{
		Params:   []function.Parameter{text("name")},
		VarParam: &function.Parameter{Name: "default", Type: cty.String},
		Type:     function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			if len(args) > 2 {
				return cty.NilVal, errors.New("it takes a name and at most one default")
			}
			name := args[0].AsString()
			value, set := l.getenv(name)
			switch {
			case len(args) == 2 && !set:
				return args[1], nil
			case !set:
				return cty.NilVal, &callError{
					"FTP105", "Environment variable is not set",
					fmt.Sprintf("%s is not set, and env() was given no default. Set it where ftpdeploy is started.", name),
				}
			case len(args) == 2 && !secretName.MatchString(name):
				return cty.StringVal(value), nil
			}
			l.conceal(cty.StringVal(value))
			return cty.StringVal(value).Mark(sensitive), nil
		},
	})
}

func (l *loader) file() function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{text("path")},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			src, err := l.read(args[0].AsString())
			if err != nil {
				return cty.NilVal, err
			}
			return cty.StringVal(string(src)).Mark(outside), nil
		},
	})
}

func (l *loader) fileSHA256() function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{text("path")},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			src, err := l.read(args[0].AsString())
			if err != nil {
				return cty.NilVal, err
			}
			return cty.StringVal(fmt.Sprintf("%x", sha256.Sum256(src))), nil
		},
	})
}

// read returns the content of a regular file of at most maxFile bytes that the blueprint names.
func (l *loader) read(path string) ([]byte, error) {
	refuse := func(why string) error {
		return &callError{"FTP105", "Cannot read a file", fmt.Sprintf("%s: %s. Paths are relative to the blueprint's directory.", path, why)}
	}
	full, err := l.path(path)
	if err != nil {
		return nil, refuse(err.Error())
	}
	return readRegular(full, refuse)
}

func readRegular(path string, refuse func(string) error) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, refuse(reason(err))
	}
	if !info.Mode().IsRegular() {
		return nil, refuse("not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, refuse(reason(err))
	}
	defer func() { _ = f.Close() }() // opened to read
	src, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, refuse(reason(err))
	}
	if len(src) > maxFile {
		return nil, refuse("larger than 1 MiB")
	}
	return src, nil
}

// reason is the cause of a file error without the path, which the caller has said.
func reason(err error) string {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}

// path resolves a path that a blueprint names: "~/" is the home directory, and what is
// not absolute starts at the blueprint's directory.
func (l *loader) path(p string) (string, error) {
	if strings.ContainsRune(p, 0) {
		return "", errors.New("the path holds a NUL byte")
	}
	if rest, ok := strings.CutPrefix(p, "~/"); ok {
		home, set := l.getenv("HOME")
		if !set || home == "" {
			return "", errors.New("HOME is not set, so ~/ means nothing")
		}
		return filepath.Join(home, rest), nil
	}
	if filepath.IsAbs(p) {
		return filepath.Clean(p), nil
	}
	return filepath.Join(l.dir, p), nil
}

func (l *loader) sensitive() function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "value", Type: cty.DynamicPseudoType, AllowNull: true, AllowDynamicType: true}},
		Type:   func(args []cty.Value) (cty.Type, error) { return args[0].Type(), nil },
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			l.conceal(args[0])
			return args[0].Mark(sensitive), nil
		},
	})
}

var nonsensitive = function.New(&function.Spec{
	Params: []function.Parameter{{Name: "value", Type: cty.DynamicPseudoType, AllowNull: true, AllowDynamicType: true, AllowMarked: true}},
	Type:   func(args []cty.Value) (cty.Type, error) { return args[0].Type(), nil },
	Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
		v, _ := args[0].UnmarkDeep()
		return v, nil
	},
})

// default() leaves the choice to whoever owns the setting, as leaving the argument out does.
var defaultValue = function.New(&function.Spec{
	Type: function.StaticReturnType(cty.String),
	Impl: func([]cty.Value, cty.Type) (cty.Value, error) { return cty.NullVal(cty.String), nil },
})

// ports(first, count) is the port range "FIRST-LAST".
var ports = function.New(&function.Spec{
	Params: []function.Parameter{{Name: "first", Type: cty.Number}, {Name: "count", Type: cty.Number}},
	Type:   function.StaticReturnType(cty.String),
	Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
		first, err := wholeNumber(args[0])
		if err != nil {
			return cty.NilVal, function.NewArgError(0, err)
		}
		count, err := wholeNumber(args[1])
		if err != nil {
			return cty.NilVal, function.NewArgError(1, err)
		}
		if count < 1 {
			return cty.NilVal, function.NewArgErrorf(1, "there must be at least one port")
		}
		return cty.StringVal(fmt.Sprintf("%d-%d", first, first+count-1)), nil
	},
})

// cidr_contains(prefix, address)
var cidrContains = function.New(&function.Spec{
	Params: []function.Parameter{text("prefix"), text("address")},
	Type:   function.StaticReturnType(cty.Bool),
	Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
		p, err := netip.ParsePrefix(args[0].AsString())
		if err != nil {
			return cty.NilVal, function.NewArgErrorf(0, "%q is not a network such as \"10.0.0.0/24\"", args[0].AsString())
		}
		a, err := netip.ParseAddr(args[1].AsString())
		if err != nil {
			return cty.NilVal, function.NewArgErrorf(1, "%q is not an address", args[1].AsString())
		}
		return cty.BoolVal(p.Contains(a)), nil
	},
})

// cidrhost(prefix, n) is the n-th address of a network; a negative n counts from its end.
var cidrHost = function.New(&function.Spec{
	Params: []function.Parameter{text("prefix"), {Name: "host", Type: cty.Number}},
	Type:   function.StaticReturnType(cty.String),
	Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
		p, err := netip.ParsePrefix(args[0].AsString())
		if err != nil {
			return cty.NilVal, function.NewArgErrorf(0, "%q is not a network such as \"10.0.0.0/24\"", args[0].AsString())
		}
		host, err := wholeNumber(args[1])
		if err != nil {
			return cty.NilVal, function.NewArgError(1, err)
		}
		n := big.NewInt(int64(host))
		size := new(big.Int).Exp(big.NewInt(2), big.NewInt(int64(p.Addr().BitLen()-p.Bits())), nil)
		if n.Sign() < 0 {
			n.Add(n, size)
		}
		if n.Sign() < 0 || n.Cmp(size) >= 0 {
			return cty.NilVal, function.NewArgErrorf(1, "network %s has no such address", p)
		}
		base := p.Masked().Addr()
		sum := new(big.Int).Add(new(big.Int).SetBytes(base.AsSlice()), n)
		a, _ := netip.AddrFromSlice(sum.FillBytes(make([]byte, base.BitLen()/8)))
		return cty.StringVal(a.String()), nil
	},
})
