# What cannot work, or would not confine what it says it confines. Each message names the option, what it would mean, and what to do.
{ config, lib, ... }:
let
  inherit (lib)
    attrNames
    concatMap
    concatStringsSep
    filter
    hasPrefix
    length
    mapAttrsToList
    optional
    ;
  instances = import ./instances.nix { inherit config lib; };
  inherit (instances)
    enabled
    isolated
    listeners
    names
    nested
    option
    overlap
    pairs
    policy
    resolverPorts
    within
    ;

  problem = bad: message: optional bad { assertion = false; inherit message; };

  goodKey = key: builtins.match "[A-Za-z0-9_][A-Za-z0-9._-]*" key != null;

  leadsRound = import ./leads-round.nix { inherit lib instances; };

  it = list: if length list == 1 then "it" else "them";

  # Whether there is to be such a user or group. A user may be declared and off.
  isDeclared =
    declared: name: lib.any (one: one.enable or true && one.name == name) (lib.attrValues declared);

  inherit (import ./paths.nix { inherit config lib; }) writable;

  unitNames =
    problem (enabled ? egress) "services.opencode.instances.egress: its unit would be opencode-egress.service, which is the daemon's. Call the instance something else."
    ++ problem (enabled ? egress-resolver) "services.opencode.instances.egress-resolver: its unit would be opencode-egress-resolver.service, which is the resolver's. Call the instance something else.";

  ofInstance =
    name: instance:
    let
      isolation = instance.networkIsolation;
      files = {
        inherit (instance) agents commands skills;
      };
      lists = lib.filterAttrs (_: list: list != [ ]) {
        inherit (isolation)
          outboundAllow
          outboundAllowCidrs
          outboundAllowNames
          outboundDenyCidrs
          presets
          ;
      };
      secrets = instances.environmentFiles instance;
      sockets = import ./sockets.nix { inherit lib; } instance.sandbox;
      privateNetwork = instance.sandbox.extraConfig.PrivateNetwork or false;
      loading = filter (key: instance.environment ? ${key}) (import ./units/loader-variables.nix);
    in
    problem (instance.user == "root" || instance.user == "0")
      "${option name "user"} is root, who can change and remove the sandbox and the policy from inside. Leave it out, or name another user."
    ++ problem (nested instance.stateDir instance.directory)
      "${option name "stateDir"} (${instance.stateDir}) and ${option name "directory"} (${instance.directory}) are one directory, or one is inside the other: the project would have the server's credentials and sessions in it, and they would be committed. Choose a `stateDir` apart from the project, or leave it out."
    ++ problem (instance.configFile != null && configSet instance)
      "${option name "config"} and ${option name "configFile"} are both set, and only the file would be used. Remove one of them."
    ++ concatMap (
      file:
      problem (hasPrefix "${builtins.storeDir}/" file)
        "${option name "environmentFile"} (${file}) is in the store, where everybody on this host can read it. Have the file made at run time, by sops-nix, agenix or by hand, and give its path as a string."
    ) secrets
    ++ concatMap (
      file:
      concatMap (
        place:
        problem (within file place.path)
          "${option name "environmentFile"} (${file}) is in ${option place.name place.setting} (${place.path}), which an agent may change: systemd reads the file as root, so a link in its place would hand the agent a file that it may not read. Put the file where only root writes, such as /run/secrets."
      ) writable
    ) secrets
    ++ concatMap (
      output:
      concatMap (
        place:
        problem (within output.path place.path)
          "${option name "sandbox.extraConfig"}.${output.setting}: ${output.path} is in ${option place.name place.setting} (${place.path}), which an agent may change: systemd opens the file as root, so a link in its place would have what the agent prints written where it may not write. Choose a file where only root writes, or leave the output to the journal."
      ) writable
    ) (import ./outputs.nix { inherit lib; } instance.sandbox)
    ++ problem (!isDeclared config.users.users instance.user)
      "${option name "user"}: `${instance.user}` is not in users.users. Its units would not start, and nftables would refuse the host's whole ruleset, other tables included. Declare the user, correct the name, or leave the option out."
    ++ problem (!isDeclared config.users.groups instance.group)
      "${option name "group"}: `${instance.group}` is not in users.groups, so its units would not start. Declare the group, correct the name, or leave the option out."
    ++ concatMap (
      group:
      problem (!isDeclared config.users.groups group)
        "${option name "extraGroups"}: `${group}` is not in users.groups, so its units would not start. Declare the group, correct the name, or remove it."
    ) instance.extraGroups
    ++ concatMap (
      kind:
      concatMap (
        key:
        problem (!goodKey key)
          "${option name "${kind}.\"${key}\""}: a file's name is made of it. Use letters, digits, `.`, `-` or `_`."
      ) (attrNames files.${kind})
    ) (attrNames files)
    ++ problem (!isolation.enable && lists != { })
      "${lib.concatMapStringsSep ", " (list: option name "networkIsolation.${list}") (attrNames lists)}: without ${option name "networkIsolation.enable"} a list confines nothing, and the instance reaches whatever this host reaches. Enable it, or remove the list."
    ++ concatMap (
      rule:
      let
        place = option name "networkIsolation.outboundAllow";
      in
      if rule.cidr == null && rule.name == null then
        problem true "${place}: a rule has neither `cidr` nor `name`, and allows nothing. Write `cidr` for a network, or `name` for a DNS name."
      else if rule.cidr != null && rule.name != null then
        problem true "${place}: a rule has both `cidr` (${rule.cidr}) and `name` (${rule.name}). Write a rule for each."
      else
        problem (rule.protocol == "icmp" && rule.cidr != null && rule.ports != [ ])
          "${place}: the rule for ${rule.cidr} has ports, and ICMP has none, so the policy file would be refused. Remove `ports`, or write `tcp` or `udp`."
        ++ problem (rule.protocol == "icmp" && rule.name != null)
          "${place}: the rule for ${rule.name} is for ICMP, and names are reached by TCP and UDP alone. Write one of these, or the network as `cidr`."
        ++ problem (rule.tls != null && rule.cidr != null)
          "${place}: the rule for ${rule.cidr} has `tls`, which is for names: behind a network there is whatever answers. Remove `tls`."
        ++
          problem
            (
              rule.tls == true
              && rule.name != null
              && !(lib.elem rule.protocol [
                null
                "tcp"
              ])
            )
            "${place}: the rule for ${rule.name} has `tls` and is not for TCP alone; by UDP (QUIC) the same servers are reached without. Write `protocol = \"tcp\"`, or remove `tls`."
        ++ problem (rule.private && rule.cidr != null)
          "${place}: the rule for ${rule.cidr} has `private`, which is for names: it says what their answers may bring. A listed network is allowed, private or not. Remove `private`."
    ) isolation.outboundAllow
    ++ problem (instances.named ? ${name} && lib.elem privateNetwork [ true "true" "yes" "on" "1" ])
      "${option name "sandbox.extraConfig"}.PrivateNetwork: in a network namespace of its own the instance has no resolver, and it has names in ${option name "networkIsolation"}, so it would not start. Remove one of them."
    ++ concatMap (
      { port, ... }:
      problem (isolation.enable && port >= resolverPorts.from && port <= resolverPorts.to)
        "${option name "listen"}: port ${toString port} is among those that the resolvers of instances have, ${toString resolverPorts.from} to ${toString resolverPorts.to}, so nobody under a policy could reach it. Choose another."
    ) (lib.unique (map (listener: { inherit (listener) port; }) (listeners instance)))
    ++ problem (isolation.enable && length (listeners instance) > 16)
      "${option name "listen.extraPorts"}: a policy has room for 16 listeners: the server's, and two for each port, on 127.0.0.1 and on ::1. Keep at most 7."
    ++ problem (isolation.enable && instance.mdns)
      "${option name "mdns"}: mDNS binds the multicast port 5353, which ${option name "networkIsolation.enable"} refuses, so nothing would be announced. Turn one of them off."
    ++ concatMap (
      { setting, path, owner }:
      problem (isolation.enable && owner != null)
        "${option name setting}: through ${path} the agent can have ${owner} reach any network, and the instance's policy would see none of it. Remove it, or turn ${option name "networkIsolation.enable"} off and know that the instance is not confined."
    ) sockets
    ++ problem (isolation.enable && loading != [ ])
      "${option name "environment"}: ${lib.concatStringsSep ", " loading} would have code of the instance's choice loaded into the root process that attaches its policy, so the units do not get ${it loading}. Remove ${it loading}, and wrap the programs that need ${it loading}; or turn ${option name "networkIsolation.enable"} off."
    ++ concatMap (problem isolation.enable) (leadsRound {
      place = option name "sandbox.extraConfig";
      settings = instance.sandbox.extraConfig;
    })
    ++ concatMap (
      suffix:
      problem (lib.hasSuffix suffix name && enabled ? ${lib.removeSuffix suffix name})
        "services.opencode.instances.${name}: its unit would be opencode-${name}.service, which instance `${lib.removeSuffix suffix name}` has. Call one of them something else."
    ) [ "-backup" "-paths" "-setup" ];

  configSet = instance: builtins.toJSON instance.config != builtins.toJSON emptyConfig;
  emptyConfig =
    (lib.evalModules {
      modules = [
        {
          options.config = lib.mkOption {
            type = (import ./opencode-json { inherit lib; }).configType;
            default = { };
          };
        }
      ];
    }).config.config;

  ofPair =
    { a, b }:
    let
      left = enabled.${a};
      right = enabled.${b};
      clashes = concatMap (
        x: filter (y: x.port == y.port && overlap x.address y.address) (listeners right)
      ) (listeners left);
      clash = lib.head clashes;
      # What the sandbox of one shows of the other's state.
      shown =
        name: instance: otherName: other:
        concatMap (
          setting:
          concatMap (
            path:
            problem (nested path other.stateDir)
              "${option name "sandbox.${setting}"}: ${path} and ${option otherName "stateDir"} (${other.stateDir}) are one directory, or one is inside the other: `${name}` would see the credentials and sessions of `${otherName}`. Name what it needs, and no more."
          ) instance.sandbox.${setting}
        ) [ "readWritePaths" "readOnlyPaths" ];
      isolation = left.networkIsolation.enable || right.networkIsolation.enable;
    in
    problem (clashes != [ ])
      "${option a "listen"} and ${option b "listen"}: both would listen on port ${toString clash.port} of an address that they have in common, and the second to start would fail. Give each a port of its own."
    ++ problem (nested left.stateDir right.stateDir)
      "${option a "stateDir"} (${left.stateDir}) and ${option b "stateDir"} (${right.stateDir}) are one directory, or one is inside the other: one server would read and change the other's credentials and sessions. Leave both out, or set them apart."
    ++ problem (nested left.stateDir right.directory)
      "${option b "directory"} (${right.directory}) and ${option a "stateDir"} (${left.stateDir}) are one directory, or one is inside the other: `${b}` would read and change the credentials and sessions of `${a}`. Set them apart."
    ++ problem (nested right.stateDir left.directory)
      "${option a "directory"} (${left.directory}) and ${option b "stateDir"} (${right.stateDir}) are one directory, or one is inside the other: `${a}` would read and change the credentials and sessions of `${b}`. Set them apart."
    ++ shown a left b right
    ++ shown b right a left
    ++ problem (isolation && left.user == right.user && policy left != policy right)
      "${option a "user"} and ${option b "user"} are both `${left.user}`, under different policies: one could have the other do what its own policy denies, and the second lock goes by user. Leave `user` out, or give both the same `networkIsolation`.";

  # What the host's firewall lets in, in words.
  opened =
    let
      firewall = config.networking.firewall;
      ranges = map (range: "${toString range.from}-${toString range.to}");
      ports =
        protocol: single: several:
        let
          all = map toString single ++ ranges several;
        in
        optional (all != [ ]) "${protocol} ${concatStringsSep ", " all}";
      of =
        rules:
        ports "TCP" rules.allowedTCPPorts rules.allowedTCPPortRanges
        ++ ports "UDP" rules.allowedUDPPorts rules.allowedUDPPortRanges;
    in
    concatStringsSep "; " (
      of firewall
      ++ concatMap lib.id (
        mapAttrsToList (interface: rules: map (ports: "${ports} on ${interface}") (of rules)) firewall.interfaces
      )
      ++ map (interface: "everything on ${interface}") firewall.trustedInterfaces
      ++ optional firewall.allowPing "ping"
      ++ [ "ICMPv6, and answers of DHCP" ]
      ++ optional (firewall.extraInputRules + firewall.extraCommands != "") "what its extra rules let in"
    );

  ofHost =
    let
      mark = import ./egress/mark.nix { inherit config lib; };
      names = lib.concatMapStringsSep ", " (name: option name "networkIsolation.enable") (
        attrNames isolated
      );
      needed = isolated != { };
    in
    concatMap (
      { place, shown }:
      problem needed
        "services.opencode.egress.markBit is ${toString config.services.opencode.egress.markBit}, ${mark.hex}, and ${place} has that bit in its marks (${shown}): what it marks would pass the second lock, or flows to names would be taken for its own. Choose a bit that it leaves alone."
    ) mark.collisions
    ++ concatMap (
      { place, shown }:
      problem (lib.any (instance: instance.networkIsolation.ownLoopback) (lib.attrValues isolated))
        "services.opencode.egress.loopbackMarkBit is ${toString config.services.opencode.egress.loopbackMarkBit}, ${mark.loopback.hex}, and ${place} has that bit in its marks (${shown}): what it marks on loopback would pass the second lock. Choose a bit that it leaves alone."
    ) mark.loopback.collisions
    ++
      problem
        (needed && config.services.opencode.egress.loopbackMarkBit == config.services.opencode.egress.markBit)
        "services.opencode.egress.loopbackMarkBit and services.opencode.egress.markBit are both ${toString config.services.opencode.egress.markBit}: own loopback and flows to names would pass as each other. Give one of them another bit."
    ++ problem (needed && !config.networking.nftables.enable)
      "networking.nftables.enable is false, and ${names} needs it: the second lock, by user, is an nftables table, and would be missing. Set networking.nftables.enable = true."
    ++ problem (needed && config.networking.firewall.enable && !config.services.opencode.egress.besideFirewall)
      "networking.firewall.enable is true, and ${names} makes rules of its own: a packet would be judged by both, so a port opened there is not open here, and one closed here looks open there. If that is what you want, set services.opencode.egress.besideFirewall = true: what a policy opens is then opened in the firewall as well. Otherwise set networking.firewall.enable = false, and keep the host's own rules in networking.nftables.tables; without any, everything on this host can be reached, and with `policy drop` what is open today closes unless you name it there: ${opened}.";
in
{
  assertions =
    unitNames
    ++ concatMap lib.id (mapAttrsToList ofInstance enabled)
    ++ concatMap ofPair (pairs names)
    ++ ofHost;
}
