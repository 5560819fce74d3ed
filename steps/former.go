package steps

import (
	"cmp"
	"context"
	"net/netip"
	"strconv"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
)

// account is what a service's Secret holds.
type account struct {
	Data struct {
		User     []byte `json:"FTP_USER"`
		Password []byte `json:"FTP_PASS"`
	}
}

// deployed is what of a service's Deployment and Service its clients have to know.
type deployed struct {
	Spec struct {
		Ports []struct {
			Name string
			Port int
		}
		Template struct {
			Spec struct {
				Containers []struct {
					Image string
					Env   []struct{ Name, Value string }
				}
				Volumes []struct {
					Projected struct {
						Sources []struct{ Secret struct{ Name string } }
					}
				}
			}
		}
	}
}

func (d *deployed) env(name string) string {
	for _, c := range d.Spec.Template.Spec.Containers {
		for _, e := range c.Env {
			if e.Name == name {
				return e.Value
			}
		}
	}
	return ""
}

// draws tells whether the pod reads a Secret in a volume of its settings.
func (d *deployed) draws(secret string) bool {
	for _, v := range d.Spec.Template.Spec.Volumes {
		for _, s := range v.Projected.Sources {
			if s.Secret.Name == secret {
				return true
			}
		}
	}
	return false
}

// former is a smoke block with account, TLS, ports and VIP of what is deployed, by
// which a service is proven that this run is about to change; nil where nothing is
// deployed or it is as in the blueprint.
func (l *Live) former(ctx context.Context, smoke *blueprints.Smoke) (*blueprints.Smoke, error) {
	s := smoke.Service
	if s.Server != "vsftpd" {
		return nil, nil
	}
	c, err := l.cluster(ctx, s.Cluster)
	if err != nil {
		return nil, err
	}
	var who account
	var pod, ports deployed
	for _, o := range []struct {
		kind, name string
		into       any
	}{
		{"Secret", workload{l.topology, s}.accountName(), &who}, {"Deployment", s.Name, &pod}, {"Service", s.Name, &ports},
	} {
		live, err := find(ctx, c, kube.Ref{Kind: o.kind, Namespace: s.Namespace, Name: o.name})
		if err != nil || live == nil {
			return nil, err
		}
		if err := live.Decode(o.into); err != nil {
			return nil, err
		}
	}
	var files struct{ Data map[string]string } // of live settings
	switch live, err := find(ctx, c, kube.Ref{Kind: "ConfigMap", Namespace: s.Namespace, Name: workload{l.topology, s}.settingsName()}); {
	case err != nil:
		return nil, err
	case live != nil:
		if err := live.Decode(&files); err != nil {
			return nil, err
		}
	}
	setting := func(name string) string { return cmp.Or(pod.env(name), files.Data[name]) }
	vip, service, user := *s.VIP, *s, *smoke.User
	if a, err := netip.ParseAddr(setting("PASV_ADDRESS")); err == nil {
		vip.Address = a
	}
	number := func(name string, otherwise int) int {
		n, err := strconv.Atoi(setting(name))
		if err != nil {
			return otherwise
		}
		return n
	}
	service.PassiveFirst = number("PASV_MIN_PORT", s.PassiveFirst)
	service.PassiveLast = number("PASV_MAX_PORT", s.PassiveLast)
	for _, p := range ports.Spec.Ports {
		if p.Name == "control" {
			service.ControlPort = p.Port
		}
	}
	service.TLS = nil
	if w := (workload{l.topology, s}); pod.draws(w.tlsName()) {
		switch d, err := servedTLS(ctx, c, w); {
		case err != nil:
			return nil, err
		case d != nil:
			service.TLS = d.formerTLS(s.TLS)
		}
	}
	user.Name = cmp.Or(string(who.Data.User), user.Name)
	user.Password = blueprints.NewSecret(string(who.Data.Password))
	if vip.Address == s.VIP.Address && service.PassiveFirst == s.PassiveFirst && service.PassiveLast == s.PassiveLast &&
		service.ControlPort == s.ControlPort && user.Name == smoke.User.Name && user.Password.Reveal() == smoke.User.Password.Reveal() && sameTLS(service.TLS, s.TLS) {
		return nil, nil
	}
	former := *smoke
	service.VIP, former.Service, former.User = &vip, &service, &user
	if smoke.VIP != nil {
		former.VIP = &vip
	}
	return &former, nil
}
