# Lists with names: the policy file, the second lock, the mark. dns-names-said.nix has what is said of lists that cannot work.
{ lib, host }:
let
  inherit (lib) hasInfix;
  inherit (import ./said.nix { inherit lib host; }) isolated;
  is = got: expected: { inherit got expected; };

  policyOf = config: builtins.fromJSON config.environment.etc."opencode-egress/policy.json".source.policy;
  table = config: config.networking.nftables.tables.opencode-egress.content;
  # The rules of a chain, in their order.
  chain =
    name: config:
    map lib.trim (
      lib.splitString "\n" (lib.head (lib.splitString "\n}" (lib.last (lib.splitString "chain ${name} {\n" (table config)))))
    );

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

  questions = [
    "ip daddr 127.0.0.1 meta l4proto { tcp, udp } th dport 22528-24575 accept"
    "ip6 daddr ::1 meta l4proto { tcp, udp } th dport 22528-24575 accept"
  ];
  marked = "meta mark & 0x02000000 == 0x02000000 accept";
  ownLoopback =
    map
      (
        address: ''oifname "lo" ${address} meta l4proto { tcp, udp } meta mark & 0x10000000 == 0x10000000 accept''
      )
      [
        "ip daddr 127.0.0.0/8"
        "ip6 daddr ::1"
      ];
in
{
  "the policy of names" =
    is
      (policyOf (
        host.one (isolated {
          outboundAllowCidrs = [ "10.10.0.0/16" ];
          outboundAllow = [
            { name = "plain.example.org"; }
            {
              name = "github.com";
              ports = [
                22
                "443"
              ];
            }
            {
              name = "*.example.net";
              protocol = "udp";
              ports = [ 443 ];
              private = true;
            }
            {
              name = "all.example.org";
              protocol = "any";
            }
            {
              name = "old.example.org";
              tls = false;
            }
            {
              name = "tls.example.org";
              ports = [ 8443 ];
              tls = true;
            }
          ];
          outboundAllowNames = [
            "api.example.org"
            "*.example.org"
          ];
          presets = [ "npm" ];
        })
      )).instances.a.allow
      [
        "10.10.0.0/16"
        { name = "plain.example.org"; }
        {
          name = "github.com";
          ports = [
            "22"
            "443"
          ];
        }
        {
          name = "*.example.net";
          protocol = "udp";
          ports = [ "443" ];
          private = true;
        }
        {
          name = "all.example.org";
          protocol = "any";
        }
        {
          name = "old.example.org";
          tls = false;
        }
        {
          name = "tls.example.org";
          ports = [ "8443" ];
          tls = true;
        }
        { name = "api.example.org"; }
        { name = "*.example.org"; }
        { preset = "npm"; }
      ];

  "resolvers and the mark are in the policy" =
    is
      (map (config: (policyOf config).resolver or null) [
        (host.one names)
        (host.one (isolated { presets = [ "npm" ]; }))
        (host.one (isolated { outboundAllow = [ { name = "api.example.org"; } ]; }))
        (with_ [
          (egress {
            resolver.upstream = [
              "192.0.2.53"
              "[2001:db8::53]:5353"
            ];
            markBit = 31;
          })
        ])
        (host.one networks)
      ])
      [
        { mark = 33554432; }
        { mark = 33554432; }
        { mark = 33554432; }
        {
          mark = 2147483648;
          upstream = [
            "192.0.2.53"
            "[2001:db8::53]:5353"
          ];
        }
        { mark = 33554432; }
      ];

  "the second lock lets questions and marked flows pass, and denies first" =
    is
      (chain "judge-a" (
        host.one (isolated {
          outboundAllowNames = [ "api.example.org" ];
          outboundAllow = [
            {
              name = "github.com";
              ports = [ 22 ];
            }
            { cidr = "192.0.2.0/24"; }
          ];
        })
      ))
      (
        [
          "ct direction reply accept"
          "ip daddr 127.0.0.1/32 tcp dport 4096 accept"
        ]
        ++ questions
        ++ [
          "ip daddr @deny4-a goto refuse-a"
          "ip6 daddr @deny6-a goto refuse-a"
          "ip daddr @allow4-a accept"
          "ip6 daddr @allow6-a accept"
          "ip daddr 192.0.2.0/24 accept"
          marked
        ]
        ++ ownLoopback
        ++ [
          "goto refuse-a"
        ]
      );
  "an instance without names may be leased one" =
    let
      of = a: b: chain "judge-b" (host.two a b);
    in
    is
      {
        same = of names networks == of networks networks;
        named = lib.subtractLists (of names networks) (of networks names);
        leased = lib.subtractLists (of names networks) (questions ++ [ marked ]);
      }
      {
        same = true;
        named = [ ];
        leased = [ ];
      };
  "another bit" =
    is
      (lib.filter (hasInfix "mark") (
        chain "judge-a" (with_ [
          (egress {
            markBit = 4;
            loopbackMarkBit = 5;
          })
        ])
      ))
      (
        [ "meta mark & 0x00000010 == 0x00000010 accept" ]
        ++ map (lib.replaceStrings [ "0x10000000" ] [ "0x00000020" ]) ownLoopback
      );
  "without own loopback its mark opens nothing" =
    let
      without = host.one (isolated { ownLoopback = false; });
    in
    is
      {
        rules = lib.filter (hasInfix "mark") (chain "judge-a" without);
        policy = lib.intersectAttrs {
          loopback = null;
          loopback_mark = null;
        } (policyOf without).instances.a;
      }
      {
        rules = [ marked ];
        policy.loopback = "listed";
      };
  "a shared user has names in its one chain" =
    let
      shared = names // {
        user = "alice";
      };
    in
    is (lib.count (line: line == marked) (chain "judge-a" (host.two shared shared))) 1;

  "a shared user under other names" =
    let
      shared = lists: isolated lists // { user = "alice"; };
      a = {
        outboundAllowNames = [ "api.example.org" ];
        presets = [ "npm" ];
      };
      differ = b: lib.any (hasInfix "different policies") (host.failures (host.two (shared a) (shared (a // b))));
    in
    is (map differ [
      { }
      { outboundAllowNames = [ "api.example.net" ]; }
      { presets = [ "pypi" ]; }
    ]) [ false true true ];

  "the resolvers' ports are the kernel side's" =
    let
      inherit (import ../instances.nix {
        inherit lib;
        config = host.one { };
      }) resolverPorts;
    in
    is (hasInfix
      "RESOLVER_PORTS: (u16, u16) = (${toString resolverPorts.from}, ${toString resolverPorts.to});"
      (builtins.readFile ../../opencode-egress-common/src/abi.rs)
    ) true;
}
