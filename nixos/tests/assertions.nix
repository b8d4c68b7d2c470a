# Each assertion and warning, once true and once not.
{ lib, host }:
let
  inherit (lib) any filter hasInfix;
  isolated = settings: { networkIsolation = settings // { enable = true; }; };

  # A host that must fail with one message that has all these words, beside one that must not fail.
  fails = config: words: good: {
    got = {
      said = filter (message: lib.all (word: hasInfix word message) words) (host.failures config) != [ ];
      failures = builtins.length (host.failures config);
      good = host.failures good;
    };
    expected = {
      said = true;
      failures = 1;
      good = [ ];
    };
  };

  warns = config: words: good: {
    got = {
      said = any (message: lib.all (word: hasInfix word message) words) config.warnings;
      warnings = builtins.length config.warnings;
      good = good.warnings;
    };
    expected = {
      said = true;
      warnings = 1;
      good = [ ];
    };
  };

  named =
    name:
    host.config [
      (host.called name { directory = "/srv/x"; })
    ];
  listen = address: port: { listen = { inherit address port; }; };
  # Whether two listeners clash.
  clash = a: b: host.failures (host.two a b) != [ ];
  extra = setting: host.one (isolated { } // { sandbox.extraConfig = setting; });
  socket = path: isolated { } // { sandbox.unixSockets.allow = [ path ]; };
  bare =
    module:
    host.config [
      { networking = lib.mapAttrsRecursive (_: lib.mkForce) module; }
      (host.called "a" ({ directory = "/srv/a"; } // isolated { }))
    ];
in
{
  "a name" = fails (named "a.b") [ "services.opencode.instances: `a.b`" "letters, digits" ] (named "A_b-1");
  "a name is not too long" =
    fails (named (lib.concatStrings (lib.genList (_: "x") 65))) [ "1 to 64" ]
      (named (lib.concatStrings (lib.genList (_: "x") 64)));
  "the daemon's name" = fails (named "egress") [ "instances.egress" "Call the instance something else" ] (
    named "egress2"
  );
  "the name of another's setup unit" =
    let
      pair =
        name:
        host.config [
          (host.called "a" { directory = "/srv/a"; })
          (host.called name {
            directory = "/srv/b";
            listen.port = 4097;
          })
        ];
    in
    fails (pair "a-setup") [ "opencode-a-setup.service" ] (pair "b-setup");
  "root" = fails (host.one { user = "root"; }) [ "instances.a.user" "root" "Leave it out" ] (
    host.one { user = "alice"; }
  );
  "a long user name" =
    let
      long =
        length:
        let
          user = lib.concatStrings (lib.genList (_: "x") length);
        in
        host.config [
          { users.users.${user} = { }; }
          (host.called "a" {
            directory = "/srv/a";
            inherit user;
          })
        ];
    in
    fails (long 32) [ "31 bytes" ] (long 31);
  "a user that nobody declares" =
    fails (host.one { user = "alicia"; })
      [ "instances.a.user" "alicia" "users.users" "nftables" "Declare the user" ]
      (host.one { user = "alice"; });
  "a user that is off" =
    let
      bob =
        enable:
        host.config [
          { users.users.bob = { inherit enable; }; }
          (host.called "a" {
            directory = "/srv/a";
            user = "bob";
          })
        ];
    in
    fails (bob false) [ "instances.a.user" "`bob`" ] (bob true);
  "a group that nobody declares" =
    fails (host.one { group = "developer"; }) [ "instances.a.group" "developer" "users.groups" "Declare" ]
      (host.one { group = "developers"; });
  "another group that nobody declares" =
    fails (host.one { extraGroups = [ "developers" "developer" ]; })
      [ "instances.a.extraGroups" "`developer`" "users.groups" "Declare" ]
      (host.one { extraGroups = [ "developers" ]; });
  "users and groups are known by the names they are given" =
    let
      given =
        name:
        host.config [
          {
            users.users.bob = { inherit name; };
            users.groups.bobs = { inherit name; };
          }
          (host.called "a" {
            directory = "/srv/a";
            user = "robert";
            group = "robert";
          })
        ];
    in
    {
      got = map (name: builtins.length (host.failures (given name))) [
        "robert"
        "bob"
      ];
      expected = [
        0
        2
      ];
    };
  "the state directory in the project" =
    fails (host.one { stateDir = "/srv/a/.state"; }) [ "instances.a.stateDir" "committed" "apart from" ]
      (host.one { stateDir = "/srv/a-state"; });
  "the state directory is the project" = fails (host.one { stateDir = "/srv/a"; }) [
    "instances.a.stateDir"
  ] (host.one { });
  "the project in the state directory" = fails (host.one { stateDir = "/srv"; }) [
    "instances.a.stateDir"
  ] (host.one { });
  "config and configFile" =
    fails
      (host.one {
        config.model = "x/y";
        configFile = "/run/x.json";
      })
      [ "instances.a.config " "configFile" "Remove one" ]
      (host.one { configFile = "/run/x.json"; });
  "a secret in the store" =
    fails (host.one { environmentFile = "${builtins.storeDir}/x"; })
      [ "instances.a.environmentFile" "everybody on this host can read it" ]
      (host.one { environmentFile = "/run/secrets/x"; });
  "another secret in the store" = fails (host.one { environmentFiles = [ "${builtins.storeDir}/x" ]; }) [
    "instances.a.environmentFile"
  ] (host.one { environmentFiles = [ "/run/secrets/x" ]; });
  "a secret where an agent writes" = {
    got =
      map
        (file: host.failures (host.two { environmentFile = file; } { sandbox.readWritePaths = [ "/srv/shared" ]; }) != [ ])
        [
          "/srv/a/.env"
          "/var/lib/opencode/instance-state/a/env"
          # The other's.
          "/srv/b/.env"
          "/srv/shared/env"
          "/srv/env"
          "/run/secrets/x"
        ];
    expected = [
      true
      true
      true
      true
      false
      false
    ];
  };
  "a secret where an agent writes, in words" =
    fails (host.one { environmentFiles = [ "/srv/a/.env" ]; })
      [ "instances.a.environmentFile" "instances.a.directory" "as root" "/run/secrets" ]
      (host.one { environmentFiles = [ "/srv/a.env" ]; });
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
  "a skill's name" = fails (host.one { skills."../x" = "text"; }) [ "skills.\"../x\"" ] (
    host.one { skills.x = "text"; }
  );
  "a list without isolation" =
    fails (host.one { networkIsolation.outboundAllowCidrs = [ "10.0.0.0/8" ]; })
      [ "networkIsolation.outboundAllowCidrs" "confines nothing" "Enable it" ]
      (host.one (isolated { outboundAllowCidrs = [ "10.0.0.0/8" ]; }));
  "a deny-list without isolation" =
    fails (host.one { networkIsolation.outboundDenyCidrs = [ "10.0.0.0/8" ]; })
      [ "networkIsolation.outboundDenyCidrs" "confines nothing" ]
      (host.one (isolated { outboundDenyCidrs = [ "10.0.0.0/8" ]; }));
  "rules without isolation" =
    let
      rules = {
        outboundAllow = [ { cidr = "10.0.0.0/8"; } ];
      };
    in
    fails (host.one { networkIsolation = rules; }) [
      "networkIsolation.outboundAllow:"
      "confines nothing"
    ] (host.one (isolated rules));
  "ports of ICMP" =
    let
      rule = ports: isolated {
        outboundAllow = [
          {
            cidr = "10.0.0.0/8";
            protocol = "icmp";
            inherit ports;
          }
        ];
      };
    in
    fails (host.one (rule [ 1 ])) [ "outboundAllow" "10.0.0.0/8" "ICMP has none" ] (host.one (rule [ ]));
  "too many listeners" =
    let
      ports = count: isolated { } // { listen.extraPorts = lib.range 5000 (5000 + count - 1); };
    in
    fails (host.one (ports 8)) [ "listen.extraPorts" "at most 7" ] (host.one (ports 7));
  "mDNS under isolation" = fails (host.one (isolated { } // { mdns = true; })) [ "instances.a.mdns" ] (
    host.one { mdns = true; }
  );
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
      (extra { StandardOutput = "append:/srv/a/log"; });
  "something in the place of attach" = {
    got = map (text: host.failures (extra { BindPaths = text; }) != [ ]) [
      "/srv/a/x:/etc/opencode-egress/opencode-egress"
      "/srv/a/etc:/etc"
      "/srv/a/run:/run/opencode-egress"
      "/srv/a/store:/nix/store"
      "/srv/a/etc:/srv/etc"
      "/etc/nixos"
    ];
    expected = lib.replicate 4 true ++ lib.replicate 2 false;
  };
  "something in the place of attach, in words" =
    fails (extra { BindPaths = "/srv/a/etc:/etc"; })
      [ "instances.a.sandbox.extraConfig.BindPaths" "/srv/a/etc" "attaches" "Choose another destination" ]
      (extra { BindPaths = "/srv/a/etc:/srv/etc"; });
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
  "ports in common" =
    fails (host.two { } { listen.port = 4096; }) [ "instances.a.listen" "instances.b.listen" "4096" ] (
      host.two { } { }
    );
  "addresses in common" = {
    got = [
      (clash (listen "0.0.0.0" 80) (listen "127.0.0.1" 80))
      (clash (listen "::" 80) (listen "127.0.0.1" 80))
      (clash (listen "::1" 80) (listen "::" 80))
      (clash (listen "::ffff:127.0.0.1" 80) (listen "127.0.0.1" 80))
      (clash (listen "127.0.0.1" 80) (listen "127.0.0.2" 80))
      (clash (listen "0.0.0.0" 80) (listen "::1" 80))
      (clash (listen "0.0.0.0" 80) (listen "127.0.0.1" 81))
      (clash { listen.extraPorts = [ 5000 ]; } (listen "127.0.0.1" 5000))
      (clash { listen.extraPorts = [ 5000 ]; } { listen.extraPorts = [ 5000 ]; })
    ];
    expected = [
      true
      true
      true
      true
      false
      false
      false
      true
      true
    ];
  };
  "one state directory" =
    fails (host.two { stateDir = "/var/lib/x"; } { stateDir = "/var/lib/x"; })
      [ "instances.a.stateDir" "instances.b.stateDir" ]
      (host.two { stateDir = "/var/lib/x"; } { stateDir = "/var/lib/xy"; });
  "a state directory in another's" = fails (host.two { stateDir = "/var/lib/x"; } { stateDir = "/var/lib/x/y"; }) [
    "instances.a.stateDir"
    "instances.b.stateDir"
  ] (host.two { } { });
  "a project in another's state directory" =
    fails (host.two { } { directory = "/var/lib/opencode/instance-state/a/x"; })
      [ "instances.b.directory" "instances.a.stateDir" ]
      (host.two { } { directory = "/srv/a"; });
  "a project in another's state directory, the other way round" =
    fails (host.two { directory = "/var/lib/opencode/instance-state/b/x"; } { })
      [ "instances.a.directory" "instances.b.stateDir" ]
      (host.two { directory = "/srv/b"; } { });
  "another's state directory in the sandbox" =
    fails (host.two { sandbox.readOnlyPaths = [ "/var/lib/opencode" ]; } { })
      [ "instances.a.sandbox.readOnlyPaths" "instances.b.stateDir" ]
      (host.two { sandbox.readOnlyPaths = [ "/var/lib/opencodes" ]; } { });
  "another's state directory in the sandbox, writable" =
    fails (host.two { } { sandbox.readWritePaths = [ "/var/lib/opencode/instance-state/a/x" ]; })
      [ "instances.b.sandbox.readWritePaths" "instances.a.stateDir" ]
      (host.two { } { sandbox.readWritePaths = [ "/srv/shared" ]; });
  "one user under different policies" =
    let
      shared = settings: isolated settings // { user = "alice"; };
    in
    fails (host.two (shared { outboundAllowCidrs = [ "10.0.0.0/8" ]; }) (shared { }))
      [ "instances.a.user" "instances.b.user" "alice" ]
      (host.two (shared { outboundAllowCidrs = [ "10.0.0.0/8" ]; }) (shared {
        outboundAllowCidrs = [ "10.0.0.0/8" ];
      }));
  "without nftables" =
    fails (bare { nftables.enable = false; })
      [ "networking.nftables.enable" "instances.a.networkIsolation.enable" "second lock" "= true" ]
      (bare { nftables.enable = true; });
  "with a firewall" =
    fails (bare { firewall.enable = true; })
      [ "networking.firewall.enable" "instances.a.networkIsolation.enable" "= false" ]
      (bare { firewall.enable = false; });
  "with a firewall and without nftables, but no isolation" = {
    got = host.failures (
      host.config [
        {
          networking.firewall.enable = lib.mkForce true;
          networking.nftables.enable = lib.mkForce false;
        }
        (host.called "a" { directory = "/srv/a"; })
      ]
    );
    expected = [ ];
  };
  "an instance that is off is not looked at" = {
    got = host.failures (host.two { } { listen.port = 4096; enable = false; });
    expected = [ ];
  };

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
