# Policies: the file, the daemon, the second lock. listeners.nix has who may connect to an instance.
{ lib, host }:
let
  inherit (lib) hasInfix;
  is = got: expected: { inherit got expected; };
  isolated = settings: { networkIsolation = settings // { enable = true; }; };

  policyOf =
    config:
    builtins.fromJSON config.environment.etc."opencode-egress/policy.json".source.policy;
  policy = instance: (policyOf (host.one instance)).instances.a;
  daemon = module: (host.config [
    (host.called "a" ({ directory = "/srv/a"; } // isolated { }))
    { services.opencode.egress = module; }
  ]).systemd.services.opencode-egress;
  table = config: config.networking.nftables.tables.opencode-egress.content;
  # Lines of the table, without their indentation.
  lines = config: map lib.trim (lib.splitString "\n" (table config));
  has = line: config: lib.elem line (lines config);
in
{
  "the policy of an instance" =
    is
      (policy (isolated {
        mode = "audit";
        outboundAllowCidrs = [ "10.10.0.0/16" ];
        outboundAllow = [
          {
            cidr = "203.0.113.0/24";
            protocol = "tcp";
            ports = [
              443
              "8000-8100"
            ];
          }
          {
            cidr = "192.0.2.53/32";
            ports = [ 53 ];
          }
          {
            cidr = "192.0.2.0/24";
            protocol = "icmp";
          }
          { cidr = "2001:db8::/32"; }
        ];
        outboundDenyCidrs = [ "10.10.9.0/24" ];
      }))
      {
        units = [
          "opencode-a.service"
          "opencode-a-setup.service"
        ];
        mode = "audit";
        loopback_mark = 268435456;
        allow = [
          "10.10.0.0/16"
          {
            cidr = "203.0.113.0/24";
            protocol = "tcp";
            ports = [
              "443"
              "8000-8100"
            ];
          }
          {
            cidr = "192.0.2.53/32";
            protocol = "any";
            ports = [ "53" ];
          }
          {
            cidr = "192.0.2.0/24";
            protocol = "icmp";
          }
          "2001:db8::/32"
        ];
        deny = [ "10.10.9.0/24" ];
        limits.sockets = 4096;
        listen = [
          {
            address = "127.0.0.1";
            port = 4096;
            open = false;
          }
        ];
      };
  "only isolated instances have one" = is (lib.attrNames (policyOf (host.two (isolated { }) { })).instances) [
    "a"
  ];
  "extra ports are loopback's" =
    is (lib.tail (policy (isolated { } // { listen.extraPorts = [ 5173 ]; })).listen)
      [
        {
          address = "127.0.0.1";
          port = 5173;
          open = false;
        }
        {
          address = "::1";
          port = 5173;
          open = false;
        }
      ];
  "log limits" =
    is
      (policyOf (
        host.config [
          (host.called "a" ({ directory = "/srv/a"; } // isolated { }))
          {
            services.opencode.egress.log = {
              intervalSecs = 1;
              burst = 2;
              perSec = 3;
            };
          }
        ]
      )).log
      {
        interval_secs = 1;
        burst = 2;
        per_sec = 3;
      };
  "the build checks the policy" =
    is (hasInfix "opencode-egress check"
      (host.one (isolated { })).environment.etc."opencode-egress/policy.json".source.buildCommand
    ) true;
  "nothing without isolation" =
    let
      config = host.one { };
    in
    is
      {
        tables = config.networking.nftables.tables ? opencode-egress;
        etc = config.environment.etc ? "opencode-egress/policy.json";
      }
      {
        tables = false;
        etc = false;
      };

  "the daemon" =
    let
      service = daemon { };
    in
    is
      {
        inherit (service) wantedBy wants restartTriggers stopIfChanged;
        reloads = map (file: file.name) service.reloadTriggers;
        inherit (service.serviceConfig)
          ExecStart
          ExecReload
          Type
          WatchdogSec
          Restart
          RestartMode
          FileDescriptorStoreMax
          RestrictAddressFamilies
          IPAddressDeny
          IPAddressAllow
          ;
        inherit (service.unitConfig) JobRunningTimeoutSec;
      }
      {
        wantedBy = [ "multi-user.target" ];
        wants = [ "opencode-egress-resolver.service" ];
        restartTriggers = [ ];
        stopIfChanged = false;
        reloads = [ "opencode-egress-policy.json" ];
        ExecStart = "/nix/store/opencode-egress/bin/opencode-egress run --config /etc/opencode-egress/policy.json";
        ExecReload = "/nix/store/opencode-egress/bin/opencode-egress reload";
        Type = "notify";
        WatchdogSec = 30;
        Restart = "always";
        RestartMode = "direct";
        JobRunningTimeoutSec = 60;
        FileDescriptorStoreMax = 8192;
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_NETLINK"
          "AF_INET"
          "AF_INET6"
        ];
        IPAddressDeny = "any";
        IPAddressAllow = "localhost";
      };
  "the resolver" =
    let
      service = (host.one (isolated { })).systemd.services.opencode-egress-resolver;
      unit = service.serviceConfig;
    in
    is
      {
        inherit (service) after stopIfChanged wantedBy;
        inherit (unit)
          CapabilityBoundingSet
          DynamicUser
          ExecStart
          NoNewPrivileges
          Restart
          ;
        without = (host.one { }).systemd.services ? opencode-egress-resolver;
      }
      {
        after = [ "opencode-egress.service" ];
        stopIfChanged = false;
        # The daemon wants it.
        wantedBy = [ ];
        CapabilityBoundingSet = "";
        DynamicUser = true;
        ExecStart = "/nix/store/opencode-egress/bin/opencode-egress resolve";
        NoNewPrivileges = true;
        Restart = "always";
        without = false;
      };
  "metrics on a port" =
    let
      unit = (daemon { metrics = "127.0.0.1:9642"; }).serviceConfig;
    in
    is
      {
        end = lib.hasSuffix " --metrics 127.0.0.1:9642" unit.ExecStart;
        inherit (unit) ReadWritePaths;
      }
      {
        end = true;
        ReadWritePaths = [ "/sys/fs/bpf" ];
      };
  "metrics on a socket" =
    let
      unit = (daemon { metrics = "/run/metrics/egress.sock"; }).serviceConfig;
    in
    is
      {
        end = lib.hasSuffix " --metrics /run/metrics/egress.sock" unit.ExecStart;
        inherit (unit) ReadWritePaths;
      }
      {
        end = true;
        ReadWritePaths = [
          "/sys/fs/bpf"
          "-/run/metrics"
        ];
      };

  "the second lock has the same lists" =
    let
      config = host.one (isolated {
        outboundAllowCidrs = [
          "10.10.0.0/16"
          "::ffff:192.0.2.0/120"
          "2001:db8::/32"
        ];
        outboundDenyCidrs = [ "10.10.9.0/24" ];
        outboundAllow = [
          {
            cidr = "203.0.113.0/24";
            protocol = "tcp";
            ports = [
              443
              "8000-8100"
            ];
          }
          {
            cidr = "2001:db8:1::/48";
            ports = [ 53 ];
          }
          {
            cidr = "2001:db8:2::/48";
            protocol = "icmp";
          }
        ];
      });
    in
    is (lib.filter (line: !has line config) [
      "elements = { 10.10.0.0/16, 192.0.2.0/24 }"
      "elements = { 2001:db8::/32 }"
      "elements = { 10.10.9.0/24 }"
      "ip daddr 203.0.113.0/24 meta l4proto tcp th dport { 443, 8000-8100 } accept"
      "ip6 daddr 2001:db8:1::/48 meta l4proto { tcp, udp } th dport { 53 } accept"
      "ip6 daddr 2001:db8:2::/48 meta l4proto ipv6-icmp accept"
      ''meta skuid vmap { "opencode-a" : jump judge-a }''
      ''limit rate 5/second burst 20 packets log prefix "opencode-a-blocked: "''
      "counter reject with icmpx admin-prohibited"
      "ct direction reply accept"
      "ip daddr 127.0.0.1/32 tcp dport 4096 accept"
    ]) [ ];
  "another error is in the policy file" =
    is
      (map (errno: (policy (isolated { inherit errno; })).errno or null) [
        "EPERM"
        "ENETUNREACH"
      ])
      [
        null
        "ENETUNREACH"
      ];
  "the second lock lets pass in audit mode" = is (map (line: has line (host.one (isolated { mode = "audit"; }))) [
    "counter accept"
    "counter reject with icmpx admin-prohibited"
  ]) [ true false ];
  "no state but replies, and without own loopback no interface, is exempt" =
    let
      content = table (host.one (isolated { ownLoopback = false; }));
    in
    is
      [
        (hasInfix "established" content)
        (hasInfix "oifname" content)
      ]
      [
        false
        false
      ];
  "an instance with a user of its own choice" =
    is (has ''meta skuid vmap { "alice" : jump judge-a }'' (host.one (isolated { } // { user = "alice"; })))
      true;
  "a shared user has one chain" =
    let
      shared = isolated { } // {
        user = "alice";
      };
    in
    is (has ''meta skuid vmap { "alice" : jump judge-a }'' (host.two shared shared)) true;
  "names become numbers for the check" =
    is (host.two (isolated { }) (isolated { })).networking.nftables.preCheckRuleset
      ''
        sed -i 's/"opencode-a" : jump/60001 : jump/' ruleset.conf
        sed -i 's/"opencode-b" : jump/60002 : jump/' ruleset.conf
      '';

  "a set-up looks for the table of its own configuration" =
    let
      of = settings: host.one (isolated settings);
      marks =
        config:
        map (line: lib.removeSuffix " {" (lib.removePrefix "chain " line)) (
          lib.filter (lib.hasPrefix "chain rendered-") (lines config)
        );
      looks =
        config: mark:
        lib.filter (command: hasInfix " ${mark})" command && hasInfix "reload-or-restart nftables" command)
          config.systemd.services.opencode-a-setup.serviceConfig.ExecStartPre;
      before = of { };
      after = of { outboundAllowCidrs = [ "10.0.0.0/8" ]; };
    in
    is
      {
        marks = lib.length (lib.unique (marks before ++ marks after));
        own = map (config: lib.length (looks config (lib.head (marks config)))) [
          before
          after
        ];
        others = looks after (lib.head (marks before));
        # As root, whom nftables answers, and after the policy is attached.
        second = lib.hasPrefix "+" (lib.elemAt before.systemd.services.opencode-a-setup.serviceConfig.ExecStartPre 1);
        without = (host.one { }).systemd.services.opencode-a-setup.serviceConfig ? ExecStartPre;
      }
      {
        marks = 2;
        own = [
          1
          1
        ];
        others = [ ];
        second = true;
        without = false;
      };
}
