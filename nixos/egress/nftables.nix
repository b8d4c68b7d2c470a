# The second lock: the same lists once more, in nftables, by the instance's user. What a program asks for is refused on the
# unit's cgroup, with an error, before there is a packet. What comes here is what no call announced, and whatever got round
# the first lock.
{ config, lib }:
let
  instances = import ../instances.nix { inherit config lib; };
  keyed = import ../keys/keyed.nix { inherit config lib; };
  inherit (config.services.opencode.egress) log;
  inherit (lib)
    concatMap
    concatStringsSep
    filter
    imap1
    mapAttrsToList
    optional
    ;
  inherit (import ../cidr.nix { inherit lib; }) parseAddress parseCidr;
  inherit (import ./mark.nix { inherit config lib; }) hex loopback;

  lines = concatStringsSep "\n";
  indent = text: lib.concatMapStringsSep "\n" (line: "  ${line}") (lib.splitString "\n" text);
  block = head: body: "${head} {\n${indent (lines body)}\n}";
  set = elements: "{ ${concatStringsSep ", " elements} }";

  daddr = network: "${if network.family == 4 then "ip" else "ip6"} daddr ${network.canonical}";
  network = text: (parseCidr text).value;

  # Networks for any protocol and port are elements of a set, which costs the same for one and for thousands.
  networkSet =
    kind: name: family: texts:
    let
      elements = map (network: network.canonical) (
        filter (network: network.family == family) (map network (lib.unique texts))
      );
    in
    block "set ${kind}${toString family}-${name}" (
      [
        "type ipv${toString family}_addr"
        "flags interval"
        "auto-merge"
      ]
      ++ optional (elements != [ ]) "elements = ${set elements}"
    );

  match =
    rule:
    let
      to = network rule.cidr;
      ports = optional (rule.ports != [ ]) "th dport ${set rule.ports}";
      protocol =
        {
          tcp = [ "meta l4proto tcp" ];
          udp = [ "meta l4proto udp" ];
          icmp = [ "meta l4proto ${if to.family == 4 then "icmp" else "ipv6-icmp"}" ];
          any = optional (ports != [ ]) "meta l4proto { tcp, udp }";
        }
        .${lib.defaultTo "any" rule.protocol};
    in
    concatStringsSep " " ([ (daddr to) ] ++ protocol ++ ports ++ [ "accept" ]);

  # An instance's connections to its own listeners are no egress.
  own =
    listener:
    let
      address = (parseAddress listener.address).value;
      networks =
        if !address.isWildcard then
          [ "${address.canonical}/${if address.family == 4 then "32" else "128"}" ]
        else
          [ "127.0.0.0/8" ] ++ optional (address.family == 6) "::1/128";
    in
    map (text: "${daddr (network text)} tcp dport ${toString listener.port} accept") networks;

  # Whose socket it is that takes a flow only the first lock can ask, which marks the sockets whose flows over loopback it judges.
  ownLoopback =
    map
      (
        address: ''oifname "lo" ${address} meta l4proto { tcp, udp } meta mark & ${loopback.hex} == ${loopback.hex} accept''
      )
      [
        "ip daddr 127.0.0.0/8"
        "ip6 daddr ::1"
      ];

  # Questions go to the instance's resolver, whatever was asked for. Which of the ports that is only the daemon knows.
  questions =
    let
      inherit (instances.resolverPorts) from to;
    in
    map (address: "${address} meta l4proto { tcp, udp } th dport ${toString from}-${toString to} accept") [
      "ip daddr 127.0.0.1"
      "ip6 daddr ::1"
    ];

  # Instances that share a user share its chain; an assertion sees to it that their policies are the same.
  users = lib.groupBy ({ instance, ... }: instance.user) (
    mapAttrsToList (name: instance: { inherit name instance; }) instances.isolated
  );

  forUser =
    user: members:
    let
      inherit (lib.head members) name instance;
      isolation = instance.networkIsolation;
      listeners = concatMap ({ instance, ... }: instances.listeners instance) members;
    in
    [
      (networkSet "allow" name 4 isolation.outboundAllowCidrs)
      (networkSet "allow" name 6 isolation.outboundAllowCidrs)
      (networkSet "deny" name 4 isolation.outboundDenyCidrs)
      (networkSet "deny" name 6 isolation.outboundDenyCidrs)
      (block "chain judge-${name}" (
        [ "ct direction reply accept" ]
        ++ lib.unique (concatMap own listeners)
        # Of instances without names, too: they may be leased one.
        ++ questions
        ++ [
          "ip daddr @deny4-${name} goto refuse-${name}"
          "ip6 daddr @deny6-${name} goto refuse-${name}"
          "ip daddr @allow4-${name} accept"
          "ip6 daddr @allow6-${name} accept"
        ]
        ++ map match (filter (rule: rule.cidr != null) isolation.outboundAllow)
        ++ map match (lib.optional (keyed.keyed ? ${name}) (keyed.rule name))
        # The addresses of names, and what is leased, are known to the first lock alone, which marks what it lets go there.
        ++ [ "meta mark & ${hex} == ${hex} accept" ]
        ++ lib.optionals isolation.ownLoopback ownLoopback
        ++ [ "goto refuse-${name}" ]
      ))
      (block "chain refuse-${name}" [
        ''limit rate ${toString log.perSec}/second burst ${toString log.burst} packets log prefix "opencode-${name}-blocked: "''
        (if isolation.mode == "audit" then "counter accept" else "counter reject with icmpx admin-prohibited")
      ])
    ];

  # A listener on a loopback address cannot be reached from outside anyhow.
  closed =
    listener:
    let
      address = (parseAddress listener.address).value;
      to =
        if !address.isWildcard then
          "${if address.family == 4 then "ip" else "ip6"} daddr ${address.canonical} "
        else if address.family == 4 then
          "meta nfproto ipv4 "
        else
          "";
    in
    optional (
      !listener.open && !address.isLoopback
    ) ''iifname != "lo" ${to}tcp dport ${toString listener.port} counter drop'';

  userNames = lib.attrNames users;

  rules = lines (
    concatMap lib.id (mapAttrsToList forUser users)
    ++ [
      (block "chain output" [
        "type filter hook output priority filter; policy accept;"
        "meta skuid vmap ${
          set (map (user: ''"${user}" : jump judge-${(lib.head users.${user}).name}'') userNames)
        }"
      ])
      (block "chain input" (
        [ "type filter hook input priority filter; policy accept;" ]
        ++ lib.unique (
          concatMap closed (
            concatMap (instance: instances.listeners instance) (lib.attrValues instances.isolated)
          )
        )
      ))
    ]
  );

  # A reload that fails leaves the table as it was. So it has a mark by which it is known: an empty chain, named after its rules.
  mark = "rendered-${builtins.substring 0 16 (builtins.hashString "sha256" rules)}";
in
{
  inherit mark;
  content = "${rules}\n${block "chain ${mark}" [ ]}";

  # The users are not there when the table is checked at build time. Numbers are as good for that.
  preCheck = lib.concatMapStrings (line: line + "\n") (
    imap1 (
      index: user: "sed -i 's/\"${user}\" : jump/${toString (60000 + index)} : jump/' ruleset.conf"
    ) userNames
  );
}
