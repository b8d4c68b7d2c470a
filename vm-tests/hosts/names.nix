# Two isolated servers with names, and a resolver at 192.0.2.20: `a` has some, on several ports and below one, and denied networks; `b` has another name.
{
  imports = [ ../common.nix ];

  services.opencode = {
    egress.resolver.upstream = [ "192.0.2.20" ];
    # Each name off the list is to have its line, with those that search domains and both families make of it.
    egress.log = {
      burst = 1000;
      perSec = 1000;
    };
    defaults.networkIsolation.enable = true;
    instances = {
      a = {
        directory = "/srv/a";
        listen.port = 4101;
        networkIsolation = {
          outboundAllowNames = [ "secure.example.org" ];
          outboundAllow = [
            {
              name = "listed.example.org";
              ports = [ 80 ];
            }
            {
              name = "*.example.net";
              protocol = "any";
              ports = [
                80
                9001
              ];
            }
          ];
          outboundDenyCidrs = [
            "192.0.2.30/32"
            "2001:db8::30/128"
          ];
        };
      };
      b = {
        directory = "/srv/b";
        listen.port = 4102;
        networkIsolation.outboundAllow = [
          {
            name = "other.example.org";
            ports = [ 80 ];
          }
        ];
      };
    };
  };
}
