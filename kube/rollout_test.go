package kube

import (
	"testing"

	"github.com/ftpdeploy/ftpdeploy/kube/kubetest"
)

func testRollout(t *testing.T, c *Client, _ *kubetest.Server) {}
