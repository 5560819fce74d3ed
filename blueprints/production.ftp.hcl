# production.ftp.hcl - passive FTP from outside a Kubernetes cluster, through two HAProxy VMs on two sites
#
# Copy it, put your own names and addresses in, and run: ftpdeploy validate -f YOURS.ftp.hcl
#
# Needed in the environment:
#   GOVC_USERNAME, GOVC_PASSWORD   an account of vCenter
#   FTPDEPLOY_VAR_ftp_password     password of FTP user "partner" (or a var file)
# Looked at if set:
#   GOVC_URL        vCenter, instead of the default below
#   KUBECONFIG      the cluster's, instead of ~/.kube/config
#   SSH_AUTH_SOCK   the agent that holds the key for the machines
#
# All addresses are of the ranges for documentation or of 10.0.0.0/8. With two NICs a machine instead of three,
# leave out network "management" and both nic "management", and put ssh = true on nic "workload".

deployment "ftp-prod" {
  required_version = ">= 0.1.0"
  labels           = { team = "platform", tier = "prod" }
}

# ---------------------------------------------------------------- inputs
variable "vip" {
  type        = string
  description = "Address FTP clients connect to. Announced in every 227 reply."
  default     = "203.0.113.15"

  validation {
    condition     = can_ipv4(var.vip)
    error_message = "vip must be an IPv4 address: the PASV (227) reply cannot carry a name or an IPv6 address."
  }
}

variable "passive" {
  type    = object({ first = number, count = number, node_port_first = number })
  default = { first = 21100, count = 11, node_port_first = 32100 }
}

variable "ftp_password" {
  type      = string
  sensitive = true
  # no default: FTPDEPLOY_VAR_ftp_password or a var file
}

locals {
  passive_last = var.passive.first + var.passive.count - 1
  password     = var.ftp_password
  workers      = ["10.20.0.21", "10.20.0.22", "10.20.0.23"]
}

# ---------------------------------------------------------------- vSphere
vcenter "main" {
  server     = env("GOVC_URL", "vcenter.example")
  username   = env("GOVC_USERNAME")
  password   = env("GOVC_PASSWORD") # what env() gives is sensitive and never shown
  datacenter = "DC1"
  ca_file    = "/etc/ssl/certs/vcenter-ca.pem" # or thumbprint = "AA:BB:..."
}

site "a" {
  vcenter       = vcenter.main
  cluster       = "stretched-01"
  host_group    = "site-a-hosts" # DRS should-run-on rule; DRS host groups already exist on a stretched cluster
  resource_pool = "infra"
  datastore     = "vsan-stretched"
  folder        = "infra/ftp"
}

site "b" {
  vcenter       = vcenter.main
  cluster       = "stretched-01"
  host_group    = "site-b-hosts"
  resource_pool = "infra"
  datastore     = "vsan-stretched"
  folder        = "infra/ftp"
}

network "frontend" {
  port_group = "dvpg-frontend"
  cidr       = "203.0.113.0/24"
  gateway    = "203.0.113.1"
}

network "workload" {
  port_group = "dvpg-workload"
  cidr       = "10.20.0.0/22"
}

network "management" {
  port_group = "dvpg-mgmt"
  cidr       = "192.0.2.0/24"
}

image "rhel9" {
  vcenter   = vcenter.main
  template  = "templates/rhel-9.4-cloudinit"
  os_family = "rhel" # checked against /etc/os-release after boot
}

# ---------------------------------------------------------------- load balancers
ssh "lab" {
  user        = "ansible"
  port        = 22
  agent       = true                 # SSH_AUTH_SOCK
  known_hosts = "~/.ssh/known_hosts" # for machines that ftpdeploy does not create
  host_key    = "pin-at-create"      # the guest publishes its key through vCenter; strict = known_hosts only
  become      = "sudo"
  # identity_file = "~/.ssh/id_ed25519"; its public half goes to user on a new machine
  # bastion = ssh.jump, a block of its own with an address
}

lb "haproxy-a" {
  site     = site.a
  image    = image.rhel9
  ssh      = ssh.lab
  cpus     = 2
  memory   = "2GiB"
  disk     = "20GiB"
  priority = 110 # VRRP; highest wins when nobody holds the VIP yet

  nic "frontend" {
    network = network.frontend
    address = "203.0.113.11"
    default = true
  }
  nic "workload" {
    network = network.workload
    address = "10.20.0.11"
  }
  nic "management" {
    network = network.management
    address = "192.0.2.11"
    ssh     = true
  }
}

lb "haproxy-b" {
  site     = site.b
  image    = image.rhel9
  ssh      = ssh.lab
  cpus     = 2
  memory   = "2GiB"
  disk     = "20GiB"
  priority = 100

  nic "frontend" {
    network = network.frontend
    address = "203.0.113.12"
    default = true
  }
  nic "workload" {
    network = network.workload
    address = "10.20.0.12"
  }
  nic "management" {
    network = network.management
    address = "192.0.2.12"
    ssh     = true
  }
}

lb_group "ftp" {
  members       = [lb.haproxy-a, lb.haproxy-b]
  anti_affinity = true        # DRS VM-VM rule, beside the per-site VM-host rules
  firewall      = "firewalld" # detected | firewalld | nftables | none
  selinux       = "manage"    # manage | leave

  haproxy {
    package      = "haproxy"
    min_version  = "2.4"
    max_sessions = 4096
    layout       = "compact" # the whole passive range in one line
    timeouts {
      connect = "5s"
      client  = "2h" # longer than the longest transfer: the control channel is silent meanwhile
      server  = "2h"
    }
    tcp_keepalive   = "60s"
    hard_stop_after = "4h" # how long an old worker may carry transfers after a reload
    min_reload_gap  = "10s"
    stats_bind      = "management:8404"
  }
}

vip "ftp" {
  lb_group        = lb_group.ftp
  address         = var.vip
  network         = network.frontend
  virtual_router  = 51
  advert_interval = "500ms" # a frozen machine is noticed after 1.75 s; a stun by vMotion of 2 s moves the VIP
  preempt         = false
  transport       = "unicast"
  probe           = "frontend-and-backend" # haproxy alive, bound to the VIP, at least one node UP
}

# ---------------------------------------------------------------- Kubernetes
cluster "tkg" {
  kubeconfig = env("KUBECONFIG", "~/.kube/config")
  # context  = "tkg-prod"      # the current one if left out
  workers    = local.workers # or worker_selector = "node-role.kubernetes.io/worker" (resolved and shown in the plan)
  node_ports = "30000-32767"
}

ftp_service "vsftpd" {
  cluster   = cluster.tkg
  vip       = vip.ftp
  namespace = "ftp"
  replicas  = 1

  # by digest, so that it cannot change between plan and apply; put in that of your registry
  image       = "registry.example/ftp/vsftpd@sha256:7f0c1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7"
  pull_policy = "IfNotPresent"

  # the image is built from image/vsftpd: it takes a new password, range or limit without a restart
  live_settings = true

  control {
    port      = 21
    node_port = 30021
  }

  passive {
    ports           = "${var.passive.first}-${local.passive_last}"
    node_port_first = var.passive.node_port_first
    same_source_ip  = true # pasv_promiscuous=NO; needs the sticky data path, which ftpdeploy generates
  }

  user "partner" {
    password = local.password
    home     = "/home/vsftpd/partner"
    writable = true
  }

  # tls {                                     # explicit FTPS; see docs/operations.md
  #   certificate = file("pki/ftp.crt")
  #   private_key = file("pki/ftp.key")
  # }

  volume "home" {
    size          = "50Gi"
    mount         = "/home/vsftpd"
    storage_class = default() # never "": that turns dynamic provisioning off
    access_mode   = "ReadWriteOnce"
    keep          = true # destroy leaves it unless --delete-data
  }
  volume "logs" {
    size  = "1Gi"
    mount = "/var/log/vsftpd"
  }
}

# ---------------------------------------------------------------- rollout and proof
rollout {
  order           = "standby-first"
  max_unavailable = 1
  drain           = "wait" # wait | deadline | cut
  drain_deadline  = "30m"
  on_failure      = "rollback" # rollback | halt
  confirm_within  = "90s"
}

smoke "end-to-end" {
  target     = vip.ftp
  user       = ftp_service.vsftpd.user.partner
  modes      = ["pasv", "epsv"]
  upload     = "8MiB"
  every_port = true # move data through each passive port
  long_idle  = "0s" # "11m" proves the idle timeouts
  timeout    = "60s"
}

smoke "standby" {
  target = lb_group.ftp.standby # EPSV straight to the box that does not hold the VIP
  user   = ftp_service.vsftpd.user.partner
  modes  = ["epsv"]
  upload = "64KiB"
}

output "url" {
  value = "ftp://${var.vip}:21/"
}
