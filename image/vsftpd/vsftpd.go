// Package vsftpd holds the recipe of the project's vsftpd image: what the
// Dockerfile beside it and the lab, which has no container builder, both make
// the image from.
package vsftpd

import _ "embed"

// Packages lists the Debian packages of the image, one a line: vsftpd, what it
// needs to run, and the tools that Start uses.
//
//go:embed packages.txt
var Packages string

// Start is the image's command, installed as StartPath.
//
//go:embed run-vsftpd.sh
var Start string

// PAM checks the virtual user's password; it is installed as PAMPath.
//
//go:embed vsftpd.pam
var PAM string

// Paths in the image.
const (
	StartPath = "usr/sbin/run-vsftpd.sh"
	PAMPath   = "etc/pam.d/vsftpd_virtual"
)
