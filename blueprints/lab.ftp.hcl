# lab.ftp.hcl - what `make demo` applies: the whole deployment, on one machine
#
# Where things are comes from the environment that the lab prints:
#   GOVC_URL GOVC_USERNAME GOVC_PASSWORD GOVC_TLS_CA_CERTS   vCenter
#   FTPDEPLOY_LAB_KEY             private key file for the machines
#   FTPDEPLOY_LAB_SUDO_PASSWORD   what sudo asks for on them
#   KUBECONFIG                    the cluster
#   FTPDEPLOY_VAR_ftp_password    password of FTP user "partner"

deployment "lab" {}

variable "ftp_password" {
  type        = string
  sensitive   = true
  description = "Password of FTP user \"partner\"."
}

# ---------------------------------------------------------------- vSphere
vcenter "lab" {
  server     = env("GOVC_URL")
  username   = env("GOVC_USERNAME")
  password   = env("GOVC_PASSWORD")
  ca_file    = env("GOVC_TLS_CA_CERTS")
  datacenter = "DC1"
}

site "a" {
  vcenter       = vcenter.lab
  cluster       = "stretched-01"
  host_group    = "site-a-hosts"
  resource_pool = "infra"
  datastore     = "vsan-stretched"
  folder        = "infra/ftp"
}

site "b" {
  vcenter       = vcenter.lab
  cluster       = "stretched-01"
  host_group    = "site-b-hosts"
  resource_pool = "infra"
  datastore     = "vsan-stretched"
  folder        = "infra/ftp"
}

network "frontend" {
  port_group = "dvpg-frontend"
  cidr       = "203.0.113.0/24"
}

network "workload" {
  port_group = "dvpg-workload"
  cidr       = "198.51.100.0/24"
}

network "management" {
  port_group = "dvpg-mgmt"
  cidr       = "192.0.2.0/24"
}

image "debian" {
  vcenter   = vcenter.lab
  template  = "templates/debian-12-cloudinit"
  os_family = "debian"
}

# ---------------------------------------------------------------- load balancers
ssh "lab" {
  user            = "ansible"
  identity_file   = env("FTPDEPLOY_LAB_KEY")
  become          = "sudo"
  become_password = env("FTPDEPLOY_LAB_SUDO_PASSWORD")
}

lb "haproxy-a" {
  site     = site.a
  image    = image.debian
  ssh      = ssh.lab
  cpus     = 1
  memory   = "512MiB"
  priority = 110

  nic "frontend" {
    network = network.frontend
    address = "203.0.113.11"
  }
  nic "workload" {
    network = network.workload
    address = "198.51.100.11"
  }
  nic "management" {
    network = network.management
    address = "192.0.2.11"
    ssh     = true
  }
}

lb "haproxy-b" {
  site     = site.b
  image    = image.debian
  ssh      = ssh.lab
  cpus     = 1
  memory   = "512MiB"
  priority = 100

  nic "frontend" {
    network = network.frontend
    address = "203.0.113.12"
  }
  nic "workload" {
    network = network.workload
    address = "198.51.100.12"
  }
  nic "management" {
    network = network.management
    address = "192.0.2.12"
    ssh     = true
  }
}

lb_group "ftp" {
  members = [lb.haproxy-a, lb.haproxy-b]

  haproxy {
    timeouts {
      connect = "5s"
      client  = "2h"
      server  = "2h"
    }
    hard_stop_after = "4h"
  }
}

vip "ftp" {
  lb_group        = lb_group.ftp
  address         = "203.0.113.15"
  network         = network.frontend
  virtual_router  = 51
  advert_interval = "500ms"
}

# ---------------------------------------------------------------- Kubernetes
cluster "lab" {
  kubeconfig = env("KUBECONFIG")
  workers    = ["198.51.100.21", "198.51.100.22", "198.51.100.23"]
}

ftp_service "vsftpd" {
  cluster   = cluster.lab
  vip       = vip.ftp
  namespace = "ftp"
  image     = "docker.io/ftpdeploy/vsftpd:lab" # the lab puts it on the nodes; there is no registry

  control {
    port      = 21
    node_port = 30021
  }

  passive {
    ports           = "21100-21110"
    node_port_first = 32100
  }

  user "partner" {
    password = var.ftp_password
  }

  volume "home" {
    size  = "1Gi"
    mount = "/home/vsftpd"
    keep  = true
  }
}

# ---------------------------------------------------------------- proof
smoke "end-to-end" {
  target = vip.ftp
  user   = ftp_service.vsftpd.user.partner
  modes  = ["pasv", "epsv"]
  upload = "1MiB"
}

smoke "standby" {
  target = lb_group.ftp.standby
  user   = ftp_service.vsftpd.user.partner
  modes  = ["epsv"]
  upload = "64KiB"
}

output "url" {
  value = "ftp://203.0.113.15:21/"
}
