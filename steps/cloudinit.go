package steps

import (
	"encoding/base64"
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/vsphere"
)

// hostKeysScript publishes the guest's SSH host keys where vsphere.Client reads
// them over vCenter's verified TLS: "KIND KEY;KIND KEY;".
const hostKeysScript = `#!/bin/sh
# Publishes the SSH host keys, so that the first connection can be verified.
set -eu
keys=
for file in /etc/ssh/ssh_host_*_key.pub; do
    read -r kind key _ < "$file"
    keys="$keys$kind $key;"
done
# A hypervisor that is busy may not answer the first time.
tries=0
until vmware-rpctool "info-set ` + vsphere.PublishedHostKeys + ` $keys"; do
    tries=$((tries + 1))
    [ $tries -lt 60 ]
    sleep 2
done
`

// hostKeysUnit runs at every boot, once the keys are there: cloud-init makes
// them at the first one. It has no Restart, which systemd before version 244
// refuses for a oneshot service.
const hostKeysUnit = `[Unit]
Description=Publish the SSH host keys to vCenter
After=cloud-init.service ssh.service sshd.service

[Service]
Type=oneshot
ExecStart=/usr/local/sbin/ftpdeploy-hostkeys

[Install]
WantedBy=multi-user.target
`

// RenderCloudInit returns what cloud-init's VMware data source gets for a box:
// guestinfo.metadata, with the network in version 2 matched by the MAC addresses
// of the NICs in their order, and guestinfo.userdata. With macs nil, "(MAC 1)"
// and so on stand in their place. Neither holds a secret.
//
// Sources: cloud-init's "VMware" data source and "Networking config Version 2".
func RenderCloudInit(box *blueprints.Box, deployment string, macs []string) (metadata, userdata []byte) {
	ethernets := map[string]any{}
	for i := range box.NICs {
		mac := fmt.Sprintf("(MAC %d)", i+1)
		if macs != nil {
			mac = macs[i]
		}
		ethernets[box.NICs[i].Interface] = ethernet(&box.NICs[i], mac)
	}
	metadata = marshal(map[string]any{
		"instance-id":    vsphere.Spec{Deployment: deployment, Name: box.Name}.UUID(),
		"local-hostname": box.Name,
		"network":        map[string]any{"version": 2, "ethernets": ethernets},
	})
	user := map[string]any{
		"name":        box.SSH.User,
		"lock_passwd": false, // an account of the template keeps its password
	}
	if len(box.SSH.AuthorizedKeys) > 0 {
		user["ssh_authorized_keys"] = box.SSH.AuthorizedKeys
	}
	config := map[string]any{
		"users":          []any{user},
		"ssh_deletekeys": true, // machines of one template must not share host keys
		"write_files": []any{
			map[string]any{"path": "/usr/local/sbin/ftpdeploy-hostkeys", "permissions": "0755", "content": hostKeysScript},
			map[string]any{"path": "/etc/systemd/system/ftpdeploy-hostkeys.service", "permissions": "0644", "content": hostKeysUnit},
		},
		"runcmd": [][]string{
			{"bash", "-c", announcement(box)},
			{"systemctl", "daemon-reload"},
			{"systemctl", "enable", "--now", "--no-block", "ftpdeploy-hostkeys.service"},
		},
	}
	if box.SSH.User == "root" {
		config["disable_root"] = false
	} else {
		user["shell"] = "/bin/bash"
		// With a password the account is the template's, and so is its rule.
		if box.SSH.Become == "sudo" && box.SSH.BecomePassword.IsZero() {
			user["sudo"] = "ALL=(ALL) NOPASSWD:ALL"
		}
	}
	return metadata, append([]byte("#cloud-config\n"), marshal(config)...)
}

// announcement makes the guest ask on each network for a neighbour, with bash alone.
// Who still has the address of a box with the MAC address of the VM that was there
// before learns the new one from that request (RFC 826, "Packet Reception"), and
// reaches the box at once, not when its entry has aged.
func announcement(box *blueprints.Box) string {
	var asks []string
	for i := range box.NICs {
		nic := &box.NICs[i]
		neighbour := nic.Network.Gateway
		if !neighbour.IsValid() {
			if neighbour = nic.Network.CIDR.Addr().Next(); neighbour == nic.Address {
				neighbour = neighbour.Next()
			}
		}
		asks = append(asks, fmt.Sprintf("echo >/dev/udp/%s/9", neighbour))
	}
	return strings.Join(append(asks, ":"), "; ")
}

func ethernet(nic *blueprints.NIC, mac string) map[string]any {
	e := map[string]any{
		"match":     map[string]any{"macaddress": mac},
		"set-name":  nic.Interface,
		"dhcp4":     false,
		"dhcp6":     false,
		"addresses": []string{fmt.Sprintf("%s/%d", nic.Address, nic.Network.CIDR.Bits())},
		// Without these the first boot waits for router advertisements.
		"accept-ra":  false,
		"link-local": []string{},
	}
	if nic.Default && nic.Network.Gateway.IsValid() {
		e["routes"] = []any{map[string]any{"to": "0.0.0.0/0", "via": nic.Network.Gateway.String()}}
	}
	if len(nic.Network.DNS) > 0 {
		e["nameservers"] = map[string]any{"addresses": nic.Network.DNS}
	}
	if nic.Network.MTU > 0 {
		e["mtu"] = nic.Network.MTU
	}
	return e
}

// marshal gives the same text for the same value: keys are sorted.
func marshal(value map[string]any) []byte {
	text, err := yaml.Marshal(value)
	if err != nil {
		panic(fmt.Sprintf("bug: cloud-init: %v", err)) // maps of strings, numbers and lists always marshal
	}
	return text
}

// guestInfo is what the VM of a box tells its guest, as extraConfig entries.
func guestInfo(box *blueprints.Box, deployment string, macs []string) map[string]string {
	metadata, userdata := RenderCloudInit(box, deployment, macs)
	return map[string]string{
		"guestinfo.metadata":          base64.StdEncoding.EncodeToString(metadata),
		"guestinfo.metadata.encoding": "base64",
		"guestinfo.userdata":          base64.StdEncoding.EncodeToString(userdata),
		"guestinfo.userdata.encoding": "base64",
	}
}
