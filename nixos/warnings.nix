# What works, and is probably not what was meant.
{ config, lib, ... }:
let
  inherit (lib) concatMap mapAttrsToList optional;
  instances = import ./instances.nix { inherit config lib; };
  inherit (instances) enabled option;
  inherit (import ./cidr.nix { inherit lib; }) contains parseAddress parseCidr;
  inherit ((import ./opencode-json { inherit lib; }).permission) asked;

  # Where an instance's configuration asks, as in "`config.permission` (bash, edit)".
  asking =
    { config, ... }:
    let
      named =
        path: permission:
        let
          tools = asked permission;
        in
        optional (tools != [ ]) "`${path}` (${lib.concatStringsSep ", " tools})";
      agents =
        kind:
        concatMap lib.id (
          mapAttrsToList (name: agent: named "config.${kind}.${name}.permission" agent.permission) (
            lib.defaultTo { } config.${kind}
          )
        );
    in
    named "config.permission" config.permission ++ agents "agent" ++ agents "mode";

  isPerson =
    name: lib.any (user: user.name == name && user.isNormalUser) (lib.attrValues config.users.users);

  # Where questions are answered, as far as it is known: the host's resolvers, and those on loopback.
  resolvers =
    let
      # A port, an interface and a name for TLS may be there as well.
      bare =
        text:
        lib.head (
          lib.filter (found: found != null) (
            map (pattern: builtins.match pattern text) [
              "([0-9.]+)([:%#].*)?"
              "\\[([^]%]*).*"
              "([^%#]*).*"
            ]
          )
        );
      addresses = map (text: lib.head (bare text)) (
        config.networking.nameservers ++ config.services.opencode.egress.resolver.upstream
      );
    in
    lib.filter (text: parseAddress text ? value) addresses
    ++ [
      "127.0.0.1"
      "127.0.0.53"
    ];

  # Entries of the lists by which an instance can ask a resolver itself: { list, cidr }.
  asksItself =
    { networkIsolation, ... }:
    let
      inherit (networkIsolation) outboundAllow outboundAllowCidrs outboundDenyCidrs;
      # Ports may be written as ranges.
      has53 =
        ports:
        lib.any (
          text:
          let
            ends = map lib.toIntBase10 (lib.splitString "-" text);
          in
          lib.head ends <= 53 && 53 <= lib.last ends
        ) ports;
      denied = resolver: lib.any (cidr: contains cidr resolver) outboundDenyCidrs;
      reached = cidr: lib.any (resolver: contains cidr resolver && !denied resolver) resolvers;
      # One host of which port 53 is listed.
      single = cidr: lib.hasSuffix (if (parseCidr cidr).value.family == 4 then "/32" else "/128") (parseCidr cidr).value.canonical;
      rules = lib.filter (
        rule:
        rule.cidr != null
        && rule.protocol != "icmp"
        && (if rule.ports == [ ] then reached rule.cidr else has53 rule.ports && (reached rule.cidr || single rule.cidr))
      ) outboundAllow;
    in
    map (cidr: {
      list = "outboundAllowCidrs";
      inherit cidr;
    }) (lib.filter reached outboundAllowCidrs)
    ++ map (rule: {
      list = "outboundAllow";
      inherit (rule) cidr;
    }) rules;

  ofInstance =
    name: instance:
    let
      isolation = instance.networkIsolation;
      inherit ((parseAddress instance.listen.address).value) isLoopback;
      firewall = config.networking.firewall.enable;
      exposed = !isLoopback && (instance.openFirewall || !isolation.enable && !firewall);
      secret = instances.environmentFiles instance != [ ];
      handed = lib.filter (socket: socket.owner != null) (
        import ./sockets.nix { inherit lib; } instance.sandbox
      );
    in
    optional (exposed && !instance.openFirewall)
      "${option name "listen.address"} is ${instance.listen.address}, and there is neither a firewall nor ${option name "networkIsolation.enable"} to keep other machines out. Listen on 127.0.0.1, or turn one of them on."
    ++ optional (exposed && !secret)
      "${option name "openFirewall"}: other machines reach the server, and without a password whoever does can have the agent run commands. Set OPENCODE_SERVER_PASSWORD in ${option name "environmentFile"}."
    ++ optional (instance.openFirewall && isLoopback)
      "${option name "openFirewall"} opens port ${toString instance.listen.port}, but ${option name "listen.address"} is ${instance.listen.address}, which other machines cannot reach. Listen on another address, or close the port."
    ++ optional (isolation.enable && instance.listen.port >= 32768 && instance.listen.port <= 60999)
      "${option name "listen.port"} is ${toString instance.listen.port}, which the kernel may take for an outgoing connection: the server then fails to start, or the connection is denied. Choose one below 32768."
    ++ optional (instance.listen.extraPorts != [ ] && !isolation.enable)
      "${option name "listen.extraPorts"} has no effect without ${option name "networkIsolation.enable"}: every port can be bound. Remove it, or enable isolation."
    ++ optional (isolation.enable && isPerson instance.user)
      "${option name "user"}: `${instance.user}` is a person's account (isNormalUser), and the second lock goes by user: everything that this person runs on this host is held to the list of `${name}`. Leave the option out, or name a system user that does nothing else, and share files by ${option name "extraGroups"}."
    ++ optional (isolation.enable && isolation.mode == "audit")
      "${option name "networkIsolation.mode"} is `audit`: what the policy denies is reported, and let pass. Set `enforce` when the list is complete."
    ++ concatMap (
      { list, cidr }:
      optional (instances.named ? ${name})
        "${option name "networkIsolation.${list}"}: ${cidr} lets the instance ask a resolver itself, so its questions pass round its names: any name can be asked, which carries data out, and what is asked there opens no way to the names that are listed. Remove it, or give its other ports alone: names need no resolver in a list."
    ) (asksItself instance)
    ++ optional (!instance.attended && asking instance != [ ])
      "services.opencode.instances.${name}: there is an `ask` in ${lib.concatStringsSep ", " (asking instance)}, and a session that nobody attends waits for the answer for ever. Write `deny`, or `allow`; or set ${option name "attended"}, if somebody answers in the web interface or by `opencode attach`."
    ++ concatMap (
      socket:
      optional (!isolation.enable)
        "${option name socket.setting}: through ${socket.path} the agent can have ${socket.owner} act for it, outside its sandbox. Remove it, unless that is what it is for."
    ) handed;

  # A directory of one that the other sees, under another policy.
  ofPair =
    { a, b }:
    let
      places =
        name: settings:
        concatMap (
          setting:
          map (path: { inherit name setting path; }) (
            lib.toList (lib.getAttrFromPath (lib.splitString "." setting) enabled.${name})
          )
        ) settings;
      writable = name: places name [ "directory" "sandbox.readWritePaths" ];
      readable = name: places name [ "sandbox.readOnlyPaths" ];
      meet =
        some: others:
        lib.filter ({ mine, theirs }: instances.nested mine.path theirs.path) (
          lib.cartesianProduct {
            mine = some;
            theirs = others;
          }
        );
      common =
        meet (writable a) (writable b ++ readable b) ++ meet (readable a) (writable b);
      bridges = instances.policy enabled.${a} != instances.policy enabled.${b};
    in
    concatMap (
      { mine, theirs }:
      optional bridges
        "${option mine.name mine.setting} (${mine.path}) and ${option theirs.name theirs.setting} (${theirs.path}) are one directory, or one is inside the other, under different policies: by a Unix socket there, or by a file that the other runs, one agent can have the other do what its own policy refuses. Set them apart, or give both the same `networkIsolation`."
    ) common;
in
{
  warnings =
    concatMap lib.id (mapAttrsToList ofInstance enabled)
    ++ concatMap ofPair (instances.pairs instances.names);
}
