package steps

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
)

// Whole refuses a narrowed plan that would leave the boxes of a service with
// other ports, or another VIP, than its objects in the cluster: HAProxy would send
// to NodePorts that no Service has, or not serve what vsftpd announces.
func Whole(t *blueprints.Topology, p *plan.Plan) error {
	if p.Goal == plan.Absent {
		return nil
	}
	for _, s := range t.Services {
		step := "kubernetes/" + s.Name
		serviceKept, serviceLeft := split(p, step, func(c plan.Change) bool { return changesPorts(s, c) })
		for _, b := range s.VIP.Group.Boxes {
			config := func(c plan.Change) bool { return c.Target == b.Name+":"+proxy.HAProxyPath && changesProxy(c) }
			boxKept, _ := split(p, "host/"+b.Name, config)
			// A box that is not set up yet serves nobody.
			_, runningLeft := split(p, "host/"+b.Name, func(c plan.Change) bool { return config(c) && c.Action == plan.Update })
			left := step
			switch {
			case serviceLeft && boxKept:
			case serviceKept && runningLeft:
				left = "host/" + b.Name
			default:
				continue
			}
			return fmt.Errorf("leaving out %s would leave HAProxy on %s and ftp_service %q with different ports or addresses: "+
				"HAProxy sending to NodePorts that no Service has, or not serving what the server announces [FTP207]", left, b.Name, s.Name)
		}
	}
	return nil
}

// split tells whether a step keeps, and whether it leaves out, such a change.
func split(p *plan.Plan, step string, such func(plan.Change) bool) (kept, left bool) {
	for _, e := range p.Entries {
		if e.Step.Name() == step {
			return slices.ContainsFunc(e.Changes, such), slices.ContainsFunc(e.Left, such)
		}
	}
	return false, false
}

// changesPorts tells whether a change touches the NodePorts of a service, or what
// its server announces to clients.
func changesPorts(s *blueprints.Service, c plan.Change) bool {
	prefix := ""
	switch c.Target {
	case kube.Ref{Kind: "Service", Namespace: s.Namespace, Name: s.Name}.String():
		prefix = "spec.ports"
	case kube.Ref{Kind: "Deployment", Namespace: s.Namespace, Name: s.Name}.String():
		prefix = `spec.template.spec.containers[name="vsftpd"].env[name="PASV_`
	case kube.Ref{Kind: "ConfigMap", Namespace: s.Namespace, Name: workload{service: s}.settingsName()}.String():
		prefix = "data.PASV_"
	default:
		return false
	}
	return c.Action == plan.Create || c.Action == plan.Delete ||
		slices.ContainsFunc(c.Detail.Fields, func(f plan.Field) bool { return strings.HasPrefix(f.Path, prefix) })
}

// changesProxy tells whether a change of a haproxy.cfg touches where it listens or
// the servers that it sends to.
func changesProxy(c plan.Change) bool {
	for line := range strings.Lines(c.Detail.Unified) {
		if sign := line[0]; sign == '+' || sign == '-' {
			words := strings.Fields(line[1:])
			if len(words) > 0 && (words[0] == "server" || words[0] == "bind") {
				return true
			}
		}
	}
	return false
}
