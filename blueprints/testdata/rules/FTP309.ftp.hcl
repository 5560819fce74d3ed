deployment "rules" {}

vcenter "main" {
  server     = "vcenter.example"
  username   = "deploy"
  password   = env("GOVC_PASSWORD")
  datacenter = "DC1"
}

site "a" {
  vcenter   = vcenter.main
  cluster   = "stretched-01"
  datastore = "vsan"
}

site "b" {
  vcenter   = vcenter.main
  cluster   = "stretched-01"
  datastore = "vsan"
}

network "frontend" {
  port_group = "dvpg-frontend"
  cidr       = "203.0.113.0/24"
}

network "workload" {
  port_group = "dvpg-workload"
  cidr       = "10.20.0.0/22"
}

image "debian" {
  vcenter   = vcenter.main
  template  = "templates/debian-12"
  os_family = "debian"
}

ssh "main" {
  user = "ansible"
}

lb "haproxy-a" {
  site     = site.a
  image    = image.debian
  ssh      = ssh.main
  priority = 110

  nic "frontend" {
    network = network.frontend
    address = "203.0.113.11"
  }
  nic "workload" {
    network = network.workload
    address = "10.20.0.11"
    ssh     = true
  }
}

lb "haproxy-b" {
  site     = site.b
  image    = image.debian
  ssh      = ssh.main
  priority = 100

  nic "frontend" {
    network = network.frontend
    address = "203.0.113.12"
  }
  nic "workload" {
    network = network.workload
    address = "10.20.0.12"
    ssh     = true
  }
}

lb_group "ftp" {
  members = [lb.haproxy-a, lb.haproxy-b]
}

vip "ftp" {
  lb_group       = lb_group.ftp
  address        = "203.0.113.15"
  network        = network.frontend
  virtual_router = 51
}

cluster "tkg" {
  workers = ["10.20.0.21", "10.20.0.22"]
}

ftp_service "vsftpd" {
  cluster   = cluster.tkg
  vip       = vip.ftp
  namespace = "ftp"
  image     = "registry.example/vsftpd@sha256:7f0c1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7"

  tls {
    certificate = file("expired.crt")
    private_key = env("FTP_PASSWORD")
  }

  control {
    node_port = 30021
  }

  passive {
    ports           = "21100-21110"
    node_port_first = 32100
  }

  user "partner" {
    password = env("FTP_PASSWORD")
  }

  volume "home" {
    size  = "1Gi"
    mount = "/home/vsftpd"
  }
}

smoke "end-to-end" {
  target = vip.ftp
  user   = ftp_service.vsftpd.user.partner
}
