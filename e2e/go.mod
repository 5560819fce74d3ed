module github.com/ftpdeploy/ftpdeploy/e2e

go 1.26.0

require (
	github.com/ftpdeploy/ftpdeploy v0.0.0
	github.com/vmware/govmomi v0.56.0
	golang.org/x/sys v0.49.0
)

replace github.com/ftpdeploy/ftpdeploy => ../
