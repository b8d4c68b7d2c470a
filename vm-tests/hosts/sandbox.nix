# Two servers, one with paths of the host's to read and to change, and an interpreter to probe with.
{ pkgs, ... }:
{
  imports = [ ../common.nix ];
  environment.systemPackages = [ pkgs.python3 ];

  services.opencode = {
    defaults = {
      path = [
        pkgs.git
        pkgs.python3
      ];
      networkIsolation.enable = true;
      networkIsolation.outboundAllowCidrs = [ "192.0.2.10/32" ];
    };
    instances = {
      a = {
        directory = "/srv/a";
        listen.port = 4101;
        sandbox = {
          readOnlyPaths = [ "/srv/reference/shown" ];
          readWritePaths = [ "/srv/exchange/shown" ];
        };
      };
      b = {
        directory = "/srv/b";
        listen.port = 4102;
      };
    };
  };
}
