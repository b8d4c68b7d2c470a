# What is said of names that are none, of lists with names that cannot work, and of marks and resolvers beside them.
{ lib, host }:
let
  inherit (lib) hasInfix;
  inherit (import ./said.nix { inherit lib host; }) fails isolated warns;
  is = got: expected: { inherit got expected; };

  names = isolated { outboundAllowNames = [ "api.example.org" ]; };
  networks = isolated { outboundAllowCidrs = [ "10.0.0.0/8" ]; };
  # A host with names, and with other modules.
  with_ =
    modules:
    host.config (
      [
        (host.called "a" ({ directory = "/srv/a"; } // names))
      ]
      ++ modules
    );
  egress = settings: { services.opencode.egress = settings; };

  # All that is said of a name that is refused, for a list.
  said = text: ((import ../dns-name.nix { inherit lib; }).parseName text).problem or "taken";
  says = text: words: is (lib.filter (word: !hasInfix word (said text)) words) [ ];
in
{
  # The second lock has no networks for them.
  "presets bring names alone" =
    let
      presets = lib.importJSON ../../opencode-egress/src/policy/presets.json;
      # Without ports, and what follows them.
      name = rule: lib.head (lib.splitString "/" (lib.head (lib.splitString ":" rule)));
    in
    is (lib.filter (rule: said (name rule) != "taken") (lib.concatMap (preset: preset.allow) (lib.attrValues presets))) [ ];

  "an address" = says "203.0.113.9" [ "is an address" "`203.0.113.9/32`" "outboundAllowCidrs" ];
  "an address in brackets" = says "[2001:db8::1]" [ "is an address" "`2001:db8::1/128`" ];
  "a mapped address" = says "::ffff:203.0.113.9" [ "is an address" "`203.0.113.9/32`" ];
  "a network" = says "10.0.0.0/8" [ "is a network" "outboundAllowCidrs" ];
  "a URL" = says "https://api.example.org/v1" [ "is a URL" "`api.example.org`" ];
  "ports" = says "github.com:22,443" [ "has ports" ''{ name = "github.com"; ports = [ "22" "443" ]; }'' "outboundAllow" ];
  "every name" = says "*" [ "`0.0.0.0/0`" "`*.example.org`" ];
  "a star in the middle" = says "api.*.org" [ "not the whole first label" "`*.example.org`" ];
  "a star in a label" = says "api-*.example.org" [ "not the whole first label" ];
  "a star below a star" = says "*.*.example.org" [ "not the whole first label" ];
  "a character" = says "user@example.org" [ "`@`" "no name has" ];
  "two dots" = says "api..example.org" [ "empty part" ];
  "a number" = says "10.0.0" [ "ends in a number" ];
  "no dot" = says "registry" [ "has no dot" "`registry.example.org`" ];
  "this machine" = says "db.localhost" [ "is this machine" "`127.0.0.1/32`" ];
  "a long part" = says "${lib.fixedWidthString 64 "x" ""}.example.org" [ "64 characters" "at most 63" ];
  "a long name" = says (lib.concatStringsSep "." (lib.genList (_: lib.fixedWidthString 50 "x" "") 5)) [
    "254 characters"
    "at most 253"
  ];
  "what the parser has to say is left to it" = is (map said [
    "*.com"
    "*.co.uk"
    "bücher.example"
    (lib.concatStringsSep "." (lib.genList (_: lib.fixedWidthString 80 "ü" "") 5))
  ]) [ "taken" "taken" "taken" "taken" ];

  "a name among networks" =
    let
      inherit (import ../types.nix { inherit lib; }) networks;
      words = {
        allowed = [ "`*.example.org` is a name" "`outboundAllowNames`" ];
        denied = [ "`*.example.org` is a name" "only networks can be denied" "deny a network" ];
        rule = [ ''write `name = "*.example.org"`'' ];
      };
    in
    is (lib.mapAttrs (list: lib.filter (word: !hasInfix word (networks.${list} "*.example.org").problem)) words) {
      allowed = [ ];
      denied = [ ];
      rule = [ ];
    };
  "what is neither is said to be no network" =
    let
      inherit (import ../types.nix { inherit lib; }) networks;
    in
    is (map (text: hasInfix "outboundAllowNames" (networks.allowed text).problem) [
      "10.0.0.1"
      "10.0.0"
      "2001:db8::1"
      "10.0.0.1/8"
      "example.org/8"
    ]) [ false false false false false ];

  "a rule for nothing" = fails (host.one (isolated { outboundAllow = [ { protocol = "tcp"; } ]; })) [
    "instances.a.networkIsolation.outboundAllow"
    "neither `cidr` nor `name`"
  ] (host.one names);
  "a rule for both" =
    fails
      (host.one (isolated {
        outboundAllow = [
          {
            cidr = "10.0.0.0/8";
            name = "api.example.org";
          }
        ];
      }))
      [ "both `cidr` (10.0.0.0/8) and `name` (api.example.org)" "a rule for each" ]
      (host.one (isolated {
        outboundAllow = [
          { cidr = "10.0.0.0/8"; }
          { name = "api.example.org"; }
        ];
      }));
  "a private network" =
    let
      of =
        rule:
        host.one (isolated {
          outboundAllow = [ (rule // { private = true; }) ];
        });
    in
    fails (of { cidr = "10.0.0.0/8"; }) [ "10.0.0.0/8 has `private`" "Remove" ] (of { name = "api.example.org"; });
  "a network with TLS" =
    let
      of = rule: host.one (isolated { outboundAllow = [ (rule // { tls = true; }) ]; });
    in
    fails (of { cidr = "10.0.0.0/8"; }) [ "10.0.0.0/8 has `tls`" "Remove" ] (of { name = "api.example.org"; });
  "TLS by UDP" =
    let
      of =
        protocol:
        host.one (isolated {
          outboundAllow = [
            {
              name = "api.example.org";
              tls = true;
              inherit protocol;
            }
          ];
        });
    in
    fails (of "any") [ "api.example.org has `tls`" "QUIC" ] (of "tcp");
  "a name by ICMP" =
    let
      of = rule: host.one (isolated { outboundAllow = [ (rule // { protocol = "icmp"; }) ]; });
    in
    fails (of { name = "api.example.org"; }) [ "api.example.org is for ICMP" "TCP and UDP alone" ] (of { cidr = "10.0.0.0/8"; });
  "names without isolation" = fails (host.one { networkIsolation.outboundAllowNames = [ "api.example.org" ]; }) [
    "networkIsolation.outboundAllowNames"
    "confines nothing"
  ] (host.one names);
  "presets without isolation" = fails (host.one { networkIsolation.presets = [ "npm" ]; }) [
    "networkIsolation.presets"
    "confines nothing"
  ] (host.one names);
  "names in a network namespace" =
    let
      apart.sandbox.extraConfig.PrivateNetwork = true;
    in
    fails (host.one (names // apart)) [ "instances.a.sandbox.extraConfig" "PrivateNetwork" "no resolver" "would not start" ] (
      host.one (networks // apart)
    );
  "a listener among the resolvers' ports" =
    let
      at = port: lists: host.one (lists // { listen.port = port; });
    in
    fails (at 24575 names) [ "instances.a.listen" "port 24575" "22528 to 24575" "Choose another" ] (at 24576 names);
  "an extra port among them, of an instance that may be leased a name" =
    let
      at = port: host.two (networks // { listen.extraPorts = [ port ]; }) networks;
    in
    fails (at 22528) [ "instances.a.listen" "port 22528" ] (at 22527);

  "a mark of WireGuard's" =
    let
      marked =
        fwMark:
        with_ [
          {
            networking.wireguard.interfaces.wg0 = {
              inherit fwMark;
              privateKeyFile = "/run/key";
            };
          }
        ];
    in
    fails (marked "0x3000000") [
      "services.opencode.egress.markBit is 25, 0x02000000"
      "networking.wireguard.interfaces.wg0.fwMark"
      "(0x03000000)"
      "Choose a bit"
    ] (marked "0x6e6978");
  "a mark of wg-quick's" =
    let
      marked =
        extraOptions:
        with_ [
          (egress { markBit = 14; })
          {
            networking.wg-quick.interfaces.wg0 = {
              inherit extraOptions;
              privateKeyFile = "/run/key";
            };
          }
        ];
    in
    fails (marked { }) [ "networking.wg-quick.interfaces.wg0.extraOptions.FwMark" "(0x0000ca6c)" ] (marked { FwMark = 1; });
  "a mark of networkd's" =
    let
      marked =
        FirewallMark:
        with_ [
          {
            systemd.network.netdevs.wg0 = {
              netdevConfig = {
                Kind = "wireguard";
                Name = "wg0";
              };
              wireguardConfig = { inherit FirewallMark; };
            };
          }
        ];
    in
    fails (marked 33554432) [ "systemd.network.netdevs.wg0.wireguardConfig.FirewallMark" ] (marked 16777216);
  "a mark in a routing rule" =
    let
      marked =
        FirewallMark:
        with_ [ { systemd.network.networks.wan.routingPolicyRules = [ { inherit FirewallMark; } ]; } ];
    in
    fails (marked "1/0x2000000") [ "systemd.network.networks.wan.routingPolicyRules" "(0x02000001)" ] (marked "1/0xff");
  "marks of programs, which the default is in none of" =
    let
      # They have assertions of their own.
      said =
        settings: program:
        map (word: lib.any (message: hasInfix "markBit" message && hasInfix word message) (
          host.failures (with_ [
            (egress settings)
            { services.${program}.enable = true; }
          ])
        )) [ "services.${program}.enable has that bit" ];
    in
    is
      (lib.mapAttrs (program: markBit: said { inherit markBit; } program ++ said { } program) {
        tailscale = 23;
        mullvad-vpn = 26;
        k3s = 14;
      })
      (lib.genAttrs [ "tailscale" "mullvad-vpn" "k3s" ] (_: [
        true
        false
      ]));
  "marks are nothing to a host without instances that are held to a list" =
    let
      beside =
        lists:
        host.config [
          (host.called "a" ({ directory = "/srv/a"; } // lists))
          (egress { markBit = 23; })
          { services.tailscale.enable = true; }
        ];
    in
    fails (beside networks) [ "services.tailscale.enable" ] (beside { networkIsolation.enable = false; });

  "a resolver of the host's in the list" =
    let
      beside =
        cidrs:
        with_ [
          { networking.nameservers = [ "192.0.2.53#dns.example.org" ]; }
          { services.opencode.instances.a.networkIsolation.outboundAllowCidrs = cidrs; }
        ];
    in
    warns (beside [ "192.0.2.0/24" ]) [
      "instances.a.networkIsolation.outboundAllowCidrs"
      "192.0.2.0/24"
      "pass round its names"
      "Remove it"
    ] (beside [ "198.51.100.0/24" ]);
  "ways to ask a resolver" =
    let
      asked =
        isolation:
        builtins.length
          (with_ [
            {
              networking.nameservers = [
                "192.0.2.53"
                "2001:db8::53"
              ];
              services.opencode.egress.resolver.upstream = [
                "[2001:db8:1::53]:5353"
                "198.51.100.53:5353"
              ];
              services.opencode.instances.a.networkIsolation = isolation;
            }
          ]).warnings;
      rule = rule: { outboundAllow = [ rule ]; };
    in
    is
      (map asked [
        { outboundAllowCidrs = [ "127.0.0.53/32" ]; }
        { outboundAllowCidrs = [ "127.0.0.0/8" ]; }
        { outboundAllowCidrs = [ "2001:db8::/32" ]; }
        {
          outboundAllowCidrs = [ "192.0.2.0/24" ];
          outboundDenyCidrs = [ "192.0.2.53/32" ];
        }
        (rule {
          cidr = "203.0.113.7/32";
          ports = [ 53 ];
        })
        (rule {
          cidr = "203.0.113.7/32";
          ports = [ "50-60" ];
        })
        (rule {
          cidr = "203.0.113.7/32";
          ports = [ 443 ];
        })
        (rule { cidr = "203.0.113.7/32"; })
        (rule { cidr = "2001:db8:1::/48"; })
        (rule { cidr = "198.51.100.0/24"; })
        (rule {
          cidr = "2001:db9::1/128";
          ports = [ 53 ];
        })
        (rule {
          cidr = "2001:db9::/32";
          ports = [ 53 ];
        })
        (rule {
          cidr = "127.0.0.1/32";
          protocol = "tcp";
          ports = [ 5432 ];
        })
        (rule {
          cidr = "0.0.0.0/0";
          protocol = "icmp";
        })
        (rule {
          name = "dns.example.org";
          ports = [ 53 ];
        })
      ])
      [
        1
        1
        1
        0
        1
        1
        0
        0
        1
        1
        1
        0
        0
        0
        0
      ];
  "a resolver in a list without names" = is (host.one (isolated { outboundAllowCidrs = [ "127.0.0.53/32" ]; })).warnings [ ];
}
