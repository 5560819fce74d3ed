package blueprints

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const reference = "../docs/blueprint.md"

// sections are the tables of the reference by the heading that they stand under, as their rows' cells.
func sections(t *testing.T) map[string][][]string {
	t.Helper()
	text, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	tables := map[string][][]string{}
	heading := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") {
			heading = strings.TrimSpace(strings.TrimLeft(line, "#"))
			tables[heading] = nil
		}
		if row, ok := strings.CutPrefix(line, "|"); ok {
			cells := strings.Split(strings.TrimSuffix(row, "|"), "|")
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			tables[heading] = append(tables[heading], cells)
		}
	}
	return tables
}

// The reference has each block of the language under its path, with its arguments and no others, and
// calls those required that are.
func TestReferenceNamesTheSchema(t *testing.T) {
	tables := sections(t)
	var check func(prefix string, blocks map[string]spec)
	check = func(prefix string, blocks map[string]spec) {
		for typ, s := range blocks {
			path := prefix + typ
			rows, ok := tables[path]
			if !ok {
				t.Errorf("no section %s", path)
			}
			told := map[string]bool{}
			for _, row := range rows {
				name := strings.Trim(row[0], "`")
				if name == row[0] {
					continue // the table's head
				}
				if len(row) != 4 {
					t.Errorf("%s.%s: %d cells, want 4: %q", path, name, len(row), row)
					continue
				}
				told[name] = true
				if got, want := row[2] == "**required**", s.requires(name); got != want {
					t.Errorf("%s.%s: called required: %t, is %t", path, name, got, want)
				}
			}
			for arg := range strings.FieldsSeq(s.args) {
				arg = strings.TrimSuffix(arg, "!")
				if !told[arg] {
					t.Errorf("no argument %s.%s", path, arg)
				}
				delete(told, arg)
			}
			for name := range told {
				t.Errorf("%s.%s is not in the language", path, name)
			}
			check(path+".", s.blocks)
		}
	}
	check("", schema)
}

var anyCode = regexp.MustCompile(`\bFTP[0-9]{3}\b`)

// The reference has each code that the program says, in order, and no other.
func TestReferenceNamesTheCodes(t *testing.T) {
	said := map[string]bool{}
	err := filepath.WalkDir("..", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains([]string{"e2e", "tools", ".git", "testdata"}, d.Name()) {
			return fs.SkipDir
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(name)
		for _, c := range anyCode.FindAllString(string(text), -1) {
			said[c] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, row := range sections(t)["Codes"] {
		if anyCode.MatchString(row[0]) {
			told = append(told, row[0])
			if len(row) != 4 || row[2] == "" || row[3] == "" {
				t.Errorf("%s: say in four cells what it means and what to do", row[0])
			}
		}
	}
	if want := sortedKeys(said); !slices.Equal(told, want) {
		t.Errorf("the reference has\n%v, the program\n%v", told, want)
	}
}

// The reference names each function.
func TestReferenceNamesTheFunctions(t *testing.T) {
	text, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	for name := range (&loader{}).functions() {
		if !regexp.MustCompile("`" + name + "[`(]").Match(text) {
			t.Errorf("no function %s", name)
		}
	}
}
