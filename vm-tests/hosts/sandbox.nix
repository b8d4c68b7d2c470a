# Two servers, one with paths of the host's to read and to change, and an interpreter to probe with. Its setup runs the probe that lies in its
# directory, if one does.
{ lib, pkgs, ... }:
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
        preInitScript = ''
          if [ -e /srv/a/probe.py ]; then ${lib.getExe' pkgs.python3 "python3"} /srv/a/probe.py > /srv/a/from-setup; fi
        '';
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
