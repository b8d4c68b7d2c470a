# Each assertion, once true and once not; those on the sandbox are in assertions-sandbox.nix.
{ lib, host }:
let
  inherit (import ./said.nix { inherit lib host; }) fails isolated;
  named =
    name:
    host.config [
      (host.called name { directory = "/srv/x"; })
    ];
  listen = address: port: { listen = { inherit address port; }; };
  # Whether two listeners clash.
  clash = a: b: host.failures (host.two a b) != [ ];
  bare =
    module:
    host.config [
      { networking = lib.mapAttrsRecursive (_: lib.mkForce) module; }
      (host.called "a" ({ directory = "/srv/a"; } // isolated { }))
    ];
in
{
  "the daemon's name" = fails (named "egress") [ "instances.egress" "Call the instance something else" ] (
    named "egress2"
  );
  "the resolver's name" = fails (named "egress-resolver") [
    "instances.egress-resolver"
    "opencode-egress-resolver.service"
    "Call the instance something else"
  ] (named "resolver");
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
  "a user that nobody declares" =
    fails (host.one { user = "alicia"; })
      [ "instances.a.user" "alicia" "users.users" "nftables" "Declare the user" ]
      (host.one { user = "alice"; });
  "a user that is off" =
    let
      bob =
        enable:
        host.config [
          {
            users.users.bob = {
              inherit enable;
              isNormalUser = true;
            };
          }
          (host.called "a" {
            directory = "/srv/a";
            user = "bob";
          })
        ];
    in
    fails (bob false) [ "instances.a.user" "`bob`" ] (bob true);
  "a group that nobody declares" =
    # A user that the module makes would be without its group, which NixOS says as well.
    fails
      (host.one {
        user = "alice";
        group = "developer";
      })
      [ "instances.a.group" "developer" "users.groups" "Declare" ]
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
            users.users.bob = {
              inherit name;
              isNormalUser = true;
            };
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

}
