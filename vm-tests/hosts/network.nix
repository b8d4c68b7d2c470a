# Two isolated servers with a resolver at 192.0.2.20: `a` may ask it, `b` may not.
{
  imports = [ ../common.nix ];

  services.opencode = {
    defaults.networkIsolation.enable = true;
    instances = {
      a = {
        directory = "/srv/a";
        listen.port = 4101;
        networkIsolation.outboundAllow = [
          {
            cidr = "192.0.2.10/32";
            protocol = "tcp";
            ports = [ "80-89" ];
          }
          {
            cidr = "2001:db8::10/128";
            protocol = "udp";
            ports = [ 9001 ];
          }
          {
            cidr = "192.0.2.20/32";
            protocol = "udp";
            ports = [ 53 ];
          }
        ];
      };
      b = {
        directory = "/srv/b";
        listen.port = 4102;
        networkIsolation = {
          outboundAllowCidrs = [
            "192.0.2.0/24"
            "2001:db8::/64"
          ];
          outboundDenyCidrs = [
            "192.0.2.20/32"
            "192.0.2.30/32"
            "2001:db8::30/128"
          ];
        };
      };
    };
  };
}
