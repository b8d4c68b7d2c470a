# Two isolated servers, each with its own list, and one that is turned off.
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
            ports = [ 80 ];
          }
          {
            cidr = "2001:db8::10/128";
            protocol = "tcp";
            ports = [ 80 ];
          }
        ];
      };
      b = {
        directory = "/srv/b";
        listen.port = 4102;
        networkIsolation = {
          outboundAllowCidrs = [
            "192.0.2.20/32"
            "2001:db8::/64"
          ];
          outboundDenyCidrs = [ "2001:db8::30/128" ];
        };
      };
      off = {
        enable = false;
        directory = "/srv/off";
        listen.port = 4103;
        networkIsolation.enable = true;
      };
    };
  };
}
