package remote

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"strings"
)

var (
	// ErrCheck says that a file was not put in place because its check failed.
	ErrCheck = errors.New("check failed")
	// ErrChanged says that a file was not put in place because what stands there is
	// not what was expected.
	ErrChanged = errors.New("someone else has changed it")
)

// File is a file to put on a machine.
type File struct {
	Path    string
	Mode    string // octal: "0644"
	Owner   string // user:group; "" = root:root
	Content []byte
	Check   string     // sh command that must succeed first; {} stands for the new file; "" = none
	Was     *FileState // what must still stand there; nil = whatever does
	Keep    string     // where the file that stood there before is kept, unless something is kept there already; "" = nowhere
}

const (
	checkFailed = 65 // EX_DATAERR of sysexits.h: the exit status that stands for ErrCheck
	fileChanged = 73 // EX_CANTCREAT: for ErrChanged
)

// putScript writes $p with the content of stdin: beside it, complete (its digest
// is compared), checked, flushed to the disk, and only then under its own name.
const putScript = `d=${p%/*}
die() { echo "$1" >&2; exit 1; }
umask 022
mkdir -p "$d" || die "make the directory $d"
umask 077
rm -f "$d/.${p##*/}.ftpdeploy."*
t=$(mktemp "$d/.${p##*/}.ftpdeploy.XXXXXXXX") || die "make a file in $d"
trap 'rm -f "$t"' EXIT
trap 'exit 1' HUP INT TERM
timeout 60 cat >"$t" && s=$(sha256sum <"$t") || die "write $t"
[ "${s%% *}" = "$sum" ] || die "write $t: it did not arrive whole"
chown "$owner" "$t" && chmod "$mode" "$t" || die "set owner and mode of $t"
check "$t" >&2 </dev/null || exit 65
sync "$t"
if [ "$was" != whatever ]; then
	now=
	if [ -f "$p" ]; then
		now=$(sha256sum <"$p") && now="${now%% *} $(stat -L -c '%a %U %G' "$p") $(readlink "$p" || :)" || die "read $p"
	fi
	# What we want to put may stand there already: the answer to an earlier try was lost.
	[ "$now" = "$was" ] || [ "${now%% *}" = "$sum" ] || { echo "it is ${now:-gone}" >&2; exit 73; }
fi
if [ "$keep" ] && [ -f "$p" ] && [ ! -e "$keep" ]; then
	mkdir -p -m 0700 "${keep%/*}" && cp -p "$p" "$keep.new" && sync "$keep.new" && mv "$keep.new" "$keep" || die "keep the present $p"
fi
mv -f "$t" "$p" && sync "$d" || die "put $p in place"
if command -v restorecon >/dev/null; then restorecon "$p" || die "set the SELinux label of $p"; fi
`

// Put writes a file. The new content is written beside the target, checked,
// flushed and renamed, so that the target is at any time the whole old or the
// whole new file. A failed check is ErrCheck with the check's output, and what is
// not f.Was is ErrChanged; both leave the target as it was. The content travels on stdin and is never an argument.
func (h *Host) Put(ctx context.Context, f File) error {
	if !path.IsAbs(f.Path) {
		return fmt.Errorf("write %s on %s: not an absolute path", f.Path, h.name)
	}
	owner := f.Owner
	if owner == "" {
		owner = "root:root"
	}
	check := f.Check
	if check == "" {
		check = ":"
	}
	sum := sha256.Sum256(f.Content)
	was := "whatever"
	if f.Was != nil {
		was = f.Was.String()
	}
	head := fmt.Sprintf("p=%s owner=%s mode=%s keep=%s sum=%s was=%s\ncheck() ( %s )\n",
		quote(f.Path), quote(owner), quote(f.Mode), quote(f.Keep), hex.EncodeToString(sum[:]), quote(was),
		strings.ReplaceAll(check, "{}", `"$1"`))
	_, err := h.change(ctx, head+putScript, f.Content)
	var exit *ExitError
	if errors.As(err, &exit) && exit.Status == checkFailed {
		return fmt.Errorf("write %s on %s: %w, the file is as it was: %s", f.Path, h.name, ErrCheck, exit.Stderr)
	}
	if errors.As(err, &exit) && exit.Status == fileChanged {
		return fmt.Errorf("write %s on %s: %w: %s", f.Path, h.name, ErrChanged, exit.Stderr)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", f.Path, err)
	}
	return nil
}

// Restore puts back what Put kept of a file, or removes the file where nothing was kept.
func (h *Host) Restore(ctx context.Context, target, kept string) error {
	script := fmt.Sprintf(`p=%s k=%s
if [ -f "$k" ]; then
	t=${p%%/*}/.${p##*/}.ftpdeploy.restored
	cp -p "$k" "$t" && sync "$t" && mv -f "$t" "$p" && sync "${p%%/*}" || exit 1
	if command -v restorecon >/dev/null; then restorecon "$p" >&2; fi
else
	rm -f "$p"
fi`, quote(target), quote(kept))
	if _, err := h.change(ctx, script, nil); err != nil {
		return fmt.Errorf("put back the former %s: %w", target, err)
	}
	return nil
}

// Note adds lines to a file of root's, made where it is not there, unless it has them.
func (h *Host) Note(ctx context.Context, file string, lines ...string) error {
	var b strings.Builder
	fmt.Fprintf(&b, `f=%s
umask 077
note() {
	if [ -f "$f" ]; then while IFS= read -r l; do [ "$l" != "$1" ] || return 0; done <"$f"; fi
	printf '%%s\n' "$1" >>"$f" || exit 1
}
mkdir -p "${f%%/*}" || exit 1
`, quote(file))
	for _, l := range lines {
		fmt.Fprintf(&b, "note %s\n", quote(l))
	}
	b.WriteString(`sync "$f"`)
	if _, err := h.change(ctx, b.String(), nil); err != nil {
		return fmt.Errorf("note in %s: %w", file, err)
	}
	return nil
}

// List names the files of a directory, but those whose names begin with a dot; none
// where it does not exist.
func (h *Host) List(ctx context.Context, dir string) ([]string, error) {
	out, err := h.Run(ctx, fmt.Sprintf("[ -d %s ] || exit 0\nls %[1]s", quote(dir)), nil)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", dir, err)
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		names = append(names, strings.TrimSuffix(line, "\n"))
	}
	return names, nil
}

// Read returns the content of files of a directory, in the order of their names here.
func (h *Host) Read(ctx context.Context, dir string, names ...string) ([][]byte, error) {
	var b strings.Builder
	b.WriteString("cd " + quote(dir) + " || exit 1\n")
	for _, n := range names {
		b.WriteString("v=$(base64 " + quote("./"+n) + ") || exit 1\nprintf '%s\\n@end\\n' \"$v\"\n")
	}
	out, err := h.Run(ctx, b.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", dir, err)
	}
	texts := strings.Split(string(out), "\n@end\n")
	if len(texts) != len(names)+1 {
		return nil, fmt.Errorf("read %s: on %s: %d of %d files came", dir, h.name, len(texts)-1, len(names))
	}
	all := make([][]byte, len(names))
	for i := range names {
		if all[i], err = base64.StdEncoding.DecodeString(strings.ReplaceAll(texts[i], "\n", "")); err != nil {
			return nil, fmt.Errorf("read %s/%s: on %s: %w", dir, names[i], h.name, err)
		}
	}
	return all, nil
}

// Remove removes files of a directory, and the directory when nothing is left in it.
func (h *Host) Remove(ctx context.Context, dir string, names ...string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "[ -d %s ] || exit 0\ncd %[1]s || exit 1\n", quote(dir))
	for _, n := range names {
		b.WriteString("rm -f " + quote("./"+n) + " || exit 1\n")
	}
	b.WriteString("sync .\n[ \"$(ls -A)\" ] || rmdir " + quote(dir) + "\n")
	if _, err := h.Run(ctx, b.String(), nil); err != nil {
		return fmt.Errorf("remove files of %s: %w", dir, err)
	}
	return nil
}

// RemoveAll removes a directory with all that is in it.
func (h *Host) RemoveAll(ctx context.Context, dir string) error {
	if _, err := h.change(ctx, "rm -rf -- "+quote(dir), nil); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}
