package steps

import (
	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/remote"
)

// portsOf are the ports of a service's control and of its data connections.
func portsOf(s *blueprints.Service) []remote.Ports {
	return []remote.Ports{{First: s.ControlPort, Last: s.ControlPort}, {First: s.PassiveFirst, Last: s.PassiveLast}}
}
