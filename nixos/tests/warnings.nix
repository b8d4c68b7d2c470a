# Each warning, once true and once not.
{ lib, host }:
let
  inherit (import ./said.nix { inherit lib host; }) isolated warns;
in
{
  "an open port without a password" =
    let
      open = isolated { } // {
        listen.address = "0.0.0.0";
        openFirewall = true;
      };
    in
    warns (host.one open) [ "openFirewall" "OPENCODE_SERVER_PASSWORD" ] (
      host.one (open // { environmentFile = "/run/x"; })
    );
  "an open port on loopback" = warns (host.one { openFirewall = true; }) [ "openFirewall" "127.0.0.1" ] (
    host.one { }
  );
  "nothing keeps others out" =
    warns
      (host.one {
        listen.address = "0.0.0.0";
        environmentFile = "/run/x";
      })
      [ "instances.a.listen.address" "neither a firewall nor" ]
      (host.one (isolated { } // { listen.address = "0.0.0.0"; }));
  "an ephemeral port" = warns (host.one (isolated { } // { listen.port = 40000; })) [ "listen.port" "40000" ] (
    host.one (isolated { } // { listen.port = 8080; })
  );
  "extra ports without isolation" = warns (host.one { listen.extraPorts = [ 5000 ]; }) [ "extraPorts" ] (
    host.one (isolated { } // { listen.extraPorts = [ 5000 ]; })
  );
  "audit" = warns (host.one (isolated { mode = "audit"; })) [ "networkIsolation.mode" "let pass" ] (
    host.one (isolated { })
  );
  "a directory in common under different policies" =
    let
      shared = isolation: host.two (isolation // { directory = "/srv/x"; }) { directory = "/srv/x/y"; };
    in
    warns (shared (isolated { }))
      [ "instances.a.directory" "instances.b.directory" "/srv/x/y" "Unix socket" "Set them apart" ]
      (shared { });
  "ways to have one in common" = {
    got =
      map
        (
          { a, b }:
          (host.two (lib.recursiveUpdate (isolated { outboundAllowCidrs = [ "10.0.0.0/8" ]; }) a) (
            lib.recursiveUpdate (isolated { }) b
          )).warnings != [ ]
        )
        [
          {
            a.sandbox.readWritePaths = [ "/srv/shared" ];
            b.sandbox.readWritePaths = [ "/srv/shared/x" ];
          }
          {
            a.sandbox.readWritePaths = [ "/srv/shared" ];
            b.sandbox.readOnlyPaths = [ "/srv" ];
          }
          {
            a.sandbox.readWritePaths = [ "/srv/b" ];
            b = { };
          }
          {
            a.sandbox.readOnlyPaths = [ "/srv/shared" ];
            b.sandbox.readOnlyPaths = [ "/srv/shared" ];
          }
          {
            a.sandbox.readWritePaths = [ "/srv/shared" ];
            b.sandbox.readWritePaths = [ "/srv/shared2" ];
          }
          {
            a.directory = "/srv/x";
            b = {
              directory = "/srv/x";
              networkIsolation.outboundAllowCidrs = [ "10.0.0.0/8" ];
            };
          }
        ];
    expected = [
      true
      true
      true
      false
      false
      false
    ];
  };
  "such a socket without isolation" =
    warns (host.one { sandbox.unixSockets.allow = [ "/run/docker.sock" ]; })
      [ "unixSockets.allow" "Docker" ]
      (host.one { sandbox.unixSockets.allow = [ "/run/x.sock" ]; });
}
