# Every block and argument of the language, each with a value that is not its default.

deployment "everything" {
  required_version = ">= 0.1.0, < 2"
  labels           = { team = "platform" }
}

variable "workers" {
  type        = list(string)
  default     = ["10.20.0.21"]
  description = "Nodes."
  sensitive   = false

  validation {
    condition     = length(var.workers) > 0
    error_message = "There must be a worker."
  }
}

locals {
  frontend = "203.0.113.0/24"
}

vcenter "ca" {
  server     = "vcenter.example:8443"
  username   = "deploy"
  password   = env("GOVC_PASSWORD")
  datacenter = "DC1"
  ca_file    = "pki/ca.pem"
}

vcenter "thumbprint" {
  server     = "other.example"
  username   = "deploy"
  password   = file("password.txt")
  datacenter = "DC2"
  thumbprint = "AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD"
}

vcenter "insecure" {
  server     = "third.example"
  username   = "deploy"
  password   = sensitive(env("GOVC_PASSWORD"))
  datacenter = "DC3"
  insecure   = true
}

site "a" {
  vcenter       = vcenter.ca
  cluster       = "c1"
  host_group    = "hosts-a"
  resource_pool = "pool"
  datastore     = "vsan"
  folder        = "infra/ftp"
}

network "frontend" {
  port_group = "dvpg-frontend"
  cidr       = local.frontend
  gateway    = cidrhost(local.frontend, 1)
  dns        = ["192.0.2.53", "2001:db8::53"]
  mtu        = 9000
}

network "workload" {
  cidr = "10.20.0.0/22"
}

image "template" {
  vcenter   = vcenter.ca
  template  = "templates/photon-5"
  os_family = "photon"
}

image "library" {
  vcenter      = vcenter.ca
  library_item = "images/debian-12"
  os_family    = "debian"
}

ssh "main" {
  user            = "deploy"
  port            = 2222
  agent           = false
  identity_file   = "~/.ssh/id"
  password        = env("FTP_PASSWORD")
  known_hosts     = "known_hosts"
  host_key        = "strict"
  authorized_keys = ["ssh-ed25519 AAAAC3Nza deploy@example"]
  bastion         = ssh.jump
  become          = "none"
  become_password = env("FTP_PASSWORD")
  connect_timeout = "3s"
}

ssh "jump" {
  user    = "jump"
  address = "jump.example"
}

lb "made" {
  site     = site.a
  image    = image.library
  ssh      = ssh.main
  cpus     = 4
  memory   = "4GiB"
  disk     = "30GiB"
  priority = 200

  nic "frontend" {
    network   = network.frontend
    address   = "203.0.113.11"
    interface = "front0"
    default   = true
    ssh       = true
  }
}

lb "found" {
  address  = "10.20.0.12"
  ssh      = ssh.main
  priority = 7

  nic "frontend" {
    network   = network.frontend
    address   = "203.0.113.12"
    interface = "ens192"
  }
  nic "workload" {
    network   = network.workload
    address   = "10.20.0.12"
    interface = "ens224"
  }
}

lb_group "ftp" {
  members       = [lb.made, lb.found]
  anti_affinity = false
  firewall      = "nftables"
  selinux       = "leave"

  haproxy {
    package         = "haproxy30"
    version         = "3.0.5-1"
    min_version     = "2.6"
    max_sessions    = 100
    layout          = "compact"
    tcp_keepalive   = "30s"
    hard_stop_after = "3h"
    min_reload_gap  = "20s"
    stats_bind      = "frontend:8404"
    peers_port      = 10001
    extra_global    = "nbthread 2"
    extra_defaults  = "option splice-auto"

    timeouts {
      connect = "1500ms"
      client  = "1h"
      server  = "90m"
    }
  }

  keepalived {
    package = "keepalived22"
    version = "1:2.2.8-1"
  }
}

vip "ftp" {
  lb_group        = lb_group.ftp
  address         = "203.0.113.15"
  network         = network.frontend
  prefix          = 32
  virtual_router  = 255
  advert_interval = "1s"
  preempt         = true
  transport       = "multicast"
  probe           = "frontend"
  garp_refresh    = "0s"
}

cluster "listed" {
  kubeconfig        = "kube/a:/etc/kube/b:~/c"
  context           = "admin@a"
  workers           = var.workers
  node_ports        = "20000-22767"
  node_address_type = "ExternalIP"
}

cluster "selected" {
  worker_selector = "role=worker"
}

ftp_service "main" {
  cluster          = cluster.listed
  vip              = vip.ftp
  namespace        = "files"
  create_namespace = false
  server           = "vsftpd"
  image            = "registry.example:5000/ftp/vsftpd:1.2@sha256:7f0c1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7"
  live_settings    = true
  pull_policy      = "Always"
  replicas         = 1
  node_selector    = { disk = "ssd" }
  tolerations      = [{ key = "ftp", operator = "Exists" }, { key = "a", value = "b", effect = "NoSchedule" }]
  banner           = "Welcome."
  max_clients      = 10
  max_per_ip       = 3
  idle_session     = "10m"
  data_connection  = "2m"

  control {
    port      = 2121
    node_port = 20021
  }

  passive {
    ports           = ports(21100, 11)
    node_port_first = 21100
    same_source_ip  = false
  }

  user "partner" {
    password = env("FTP_PASSWORD")
    home     = "/home/vsftpd/partner"
  }

  tls {
    mode           = "explicit"
    required       = false
    certificate    = file("ftp.crt")
    private_key    = file("ftp.key")
    ca_certificate = file("ca.crt")
    server_name    = "ftp.example.org"
    reuse          = "require"
    min_version    = "1.2"
    max_version    = "1.3"
  }

  volume "home" {
    size          = "10Gi"
    mount         = "/home/vsftpd"
    storage_class = "gold"
    access_mode   = "ReadWriteMany"
    keep          = false
  }

  resources {
    requests = { cpu = "100m" }
    limits   = { memory = "128Mi" }
  }
}

ftp_service "elsewhere" {
  cluster   = cluster.selected
  vip       = vip.ftp
  namespace = "legacy"
  server    = "external"

  control {
    port      = 2122
    node_port = 30021
  }

  passive {
    ports           = "22100-22120"
    node_port_first = 32100
  }

  user "one" {
    password = env("FTP_PASSWORD")
    home     = "/srv/one"
    writable = false
  }

  user "two" {
    password = env("FTP_PASSWORD")
  }
}

rollout {
  order           = "standby-first"
  max_unavailable = 1
  drain           = "deadline"
  drain_deadline  = "10m"
  on_failure      = "halt"
  confirm_within  = "40m"
}

smoke "all" {
  target     = vip.ftp
  user       = ftp_service.elsewhere.user.two
  modes      = ["epsv"]
  upload     = "3MiB"
  every_port = false
  long_idle  = "11m"
  timeout    = "20m"
  from       = ssh.jump
}

output "secret" {
  value       = env("FTP_PASSWORD")
  sensitive   = true
  description = "What to type."
}
