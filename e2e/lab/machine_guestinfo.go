package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// writeGuestinfo puts a VM's guestinfo into dir, which the guest sees as /run/guestinfo:
//
//	environment   what cloud-init's VMware data source reads
//	values/KEY    what vmware-rpctool's info-get answers
//	set/KEY       what its info-set asks for; the lab takes it away when it is done
//
// Only the guest's root may read any of it, as only root reaches the real one.
func writeGuestinfo(dir string, guestinfo map[string]string) error {
	values := filepath.Join(dir, "values")
	for _, d := range []string{dir, values, filepath.Join(dir, "set")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	for key, value := range guestinfo {
		if !validGuestinfoKey(key) {
			continue // the guest could not name it
		}
		if err := replaceFile(dir, "values/"+key, value); err != nil {
			return err
		}
	}
	// The guest may be reading: only what has gone is removed.
	entries, err := os.ReadDir(values)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if _, ok := guestinfo[entry.Name()]; !ok {
			if err := os.Remove(filepath.Join(values, entry.Name())); err != nil {
				return err
			}
		}
	}
	return replaceFile(dir, "environment", renderEnvironment(guestinfo))
}

// renderEnvironment gives guestinfo to DataSourceVMware's environment transport
// as a systemd EnvironmentFile.
func renderEnvironment(guestinfo map[string]string) string {
	var b strings.Builder
	b.WriteString("VMX_GUESTINFO=1\n")
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "`", "\\`", `$`, `\$`)
	for _, key := range []string{"metadata", "userdata", "vendordata"} {
		for _, suffix := range []string{"", ".encoding"} {
			if value, ok := guestinfo["guestinfo."+key+suffix]; ok {
				name := strings.ToUpper(strings.ReplaceAll(key+suffix, ".", "_"))
				fmt.Fprintf(&b, "VMX_GUESTINFO_%s=\"%s\"\n", name, quote.Replace(value))
			}
		}
	}
	return b.String()
}

// validGuestinfoKey tells whether vmware-rpctool lets a guest use key.
func validGuestinfoKey(key string) bool {
	name, ok := strings.CutPrefix(key, "guestinfo.")
	return ok && name != "" && strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == ""
}

// replaceFile writes file name below dir so that its readers see either the old
// or the new text.
func replaceFile(dir, name, text string) error {
	temporary := filepath.Join(dir, "new")
	if err := os.WriteFile(temporary, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(dir, name))
}
