# The assertions on what could lead round the policy by the sandbox, each once true and once not.
{ lib, host }:
let
  inherit (import ./said.nix { inherit lib host; }) fails isolated;
  extra = setting: host.one (isolated { } // { sandbox.extraConfig = setting; });
  socket = path: isolated { } // { sandbox.unixSockets.allow = [ path ]; };
in
{
  "variables that load code into attach" =
    let
      with' = isolation: name: host.one (isolation // { environment.${name} = "/srv/a/lib"; });
    in
    fails (with' (isolated { }) "LD_LIBRARY_PATH")
      [ "instances.a.environment" "LD_LIBRARY_PATH" "root" "wrap" ]
      (with' (isolated { }) "LIBRARY_PATH");
  "variables that load code, without isolation" = {
    got = host.failures (host.one { environment.LD_LIBRARY_PATH = "/srv/a/lib"; });
    expected = [ ];
  };
  "sockets that hand the network out" = {
    got = map (path: host.failures (host.one (socket path)) != [ ]) [
      "/nix/var/nix/daemon-socket/socket"
      "/var/run/docker.sock"
      "/run/docker.sock"
      "/run/podman/podman.sock"
      "/run/containerd/containerd.sock"
      "/run/dbus/system_bus_socket"
      "/run/systemd/private"
      "/run/nscd/socket"
      "/run"
      "/run/postgresql/.s.PGSQL.5432"
      "/run/docker.sock.other"
    ];
    expected = [
      true
      true
      true
      true
      true
      true
      true
      true
      true
      false
      false
    ];
  };
  "such a socket by its directory" =
    fails (host.one (isolated { } // { sandbox.readOnlyPaths = [ "/nix/var/nix" ]; }))
      [ "instances.a.sandbox.readOnlyPaths" "the Nix daemon" "Remove it" ]
      (host.one (isolated { } // { sandbox.readOnlyPaths = [ "/srv/reference" ]; }));
  "such a socket by a mount of one's own" =
    fails (extra { BindReadOnlyPaths = [ "-/run/dbus:/run/dbus" ]; })
      [ "instances.a.sandbox.extraConfig.BindReadOnlyPaths" "D-Bus" ]
      (extra { BindReadOnlyPaths = "/srv/reference:/reference"; });
  "such a socket by one mount of several" =
    fails (extra { BindReadOnlyPaths = "/srv/reference /run/dbus"; })
      [ "instances.a.sandbox.extraConfig.BindReadOnlyPaths" "/run/dbus" "D-Bus" ]
      (extra { BindReadOnlyPaths = "/srv/reference /srv/other:/other:rbind"; });
  "ways to write such a mount" = {
    got = map (text: host.failures (extra { BindPaths = [ text ]; }) != [ ]) [
      "/run/dbus"
      "-/run/dbus"
      "/srv/x	/run/dbus"
      "\"/run/dbus\""
      "'/srv/my x' '/run/dbus:/x'"
      "%t/dbus"
      "/run//./dbus"
      "/var/run/docker.sock"
      "/:/host"
      "/srv/x:/run/dbus"
      "/srv/run/dbus"
    ];
    expected = lib.replicate 9 true ++ lib.replicate 2 false;
  };
  "such a socket as the standard output" =
    fails (extra { StandardOutput = "append:/run/docker.sock"; })
      [ "instances.a.sandbox.extraConfig.StandardOutput" "Docker" ]
      (extra { StandardOutput = "append:/var/log/a"; });
  "output to where an agent writes" =
    fails (host.one { sandbox.extraConfig.StandardError = "append:/srv/a/log"; })
      [ "instances.a.sandbox.extraConfig.StandardError" "/srv/a/log is in" "as root" "leave the output to the journal" ]
      (host.one { sandbox.extraConfig.StandardError = "append:/srv/b/log"; });
  "output to where an agent writes by a mount of its own" =
    fails
      (host.one {
        sandbox.extraConfig = {
          BindPaths = [ "/srv/out:/out" ];
          StandardOutput = "file:/srv/out/log";
        };
      })
      [ "sandbox.extraConfig.BindPaths" "/srv/out/log is in" ]
      (host.one {
        sandbox.extraConfig = {
          BindReadOnlyPaths = [ "/srv/out:/out" ];
          StandardOutput = "file:/srv/out/log";
        };
      });
  "something in the place of attach" = {
    got = map (text: host.failures (extra { BindPaths = text; }) != [ ]) [
      "/srv/x/program:/etc/opencode-egress/bin/opencode-egress"
      "/srv/x/etc:/etc"
      "/srv/x/run:/run/opencode-egress"
      "/srv/x/store:/nix/store"
      "/srv/x/etc:/srv/etc"
      "/etc/nixos"
    ];
    expected = lib.replicate 4 true ++ lib.replicate 2 false;
  };
  "something in the place of attach, in words" =
    fails (extra { BindPaths = "/srv/x/etc:/etc"; })
      [ "instances.a.sandbox.extraConfig.BindPaths" "/srv/x/etc" "attaches" "Choose another destination" ]
      (extra { BindPaths = "/srv/x/etc:/srv/etc"; });
  "commands with root's privileges" =
    fails (extra { ExecStartPost = "+/bin/x"; })
      [ "instances.a.sandbox.extraConfig" "ExecStartPost" "root's privileges" "absolute path" ]
      (extra { ExecStartPost = "-/bin/x +y"; });
  "ways to write such a command" = {
    got = map (command: host.failures (extra { ExecStart = command; }) != [ ]) [
      "+/bin/x"
      "!/bin/x"
      "!!/bin/x"
      "@+/bin/x x"
      "-:+/bin/x"
      [
        "/bin/x"
        "+/bin/y"
      ]
      "/bin/x ; +/bin/y"
      "/bin/x ;	-!/bin/y"
      "\"+/bin/x\""
      "\\x2b/bin/x"
      " +/bin/x"
      "/bin/x"
      "-@/bin/x x +y !z"
      "/bin/sh -c \"true; x\""
      ""
    ];
    expected = lib.replicate 11 true ++ lib.replicate 4 false;
  };
  "such a command without isolation" = {
    got = host.failures (host.one { sandbox.extraConfig.ExecStart = "+/bin/x"; });
    expected = [ ];
  };
  "settings by another name" =
    fails (extra { "User " = "x"; }) [ "instances.a.sandbox.extraConfig" "`User `" "systemd.exec(5)" ] (
      extra { CPUWeight = 5; }
    );
  "each setting that leads round the policy" = {
    got = lib.filter (key: host.failures (extra { ${key} = "x"; }) == [ ]) (import ../units/kept-settings.nix);
    expected = [ ];
  };
  "settings that lead round the policy" =
    fails (extra { Slice = "x.slice"; }) [ "sandbox.extraConfig" "Slice" "lead round" ] (
      extra { Nice = 5; }
    );
}
