# Two servers on every address, one of them opened, beside the host's own firewall, which lets in a port of the host's.
{ lib, ... }:
{
  imports = [ ../common.nix ];

  networking.firewall = {
    enable = lib.mkForce true;
    allowedTCPPorts = [ 8022 ];
  };

  services.opencode = {
    egress.besideFirewall = true;
    defaults.networkIsolation = {
      enable = true;
      outboundAllow = [
        {
          cidr = "192.0.2.10/32";
          protocol = "tcp";
          ports = [ 80 ];
        }
        {
          cidr = "2001:db8::10/128";
          protocol = "udp";
          ports = [ 9001 ];
        }
      ];
    };
    instances = {
      opened = {
        directory = "/srv/opened";
        listen = {
          address = "::";
          port = 4101;
        };
        openFirewall = true;
      };
      closed = {
        directory = "/srv/closed";
        listen = {
          address = "::";
          port = 4102;
        };
      };
    };
  };
}
