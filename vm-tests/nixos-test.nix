# Each scenario that takes a machine, as a NixOS test: vm-<name of the script> -> test. `pkgs` has the overlay.
{ pkgs, module }:
let
  inherit (pkgs) lib;
  hosts = import ../nixos/hosts.nix { inherit lib; };

  # The cable between the two.
  addresses =
    ipv4: ipv6:
    let
      listed = prefixLength: map (address: { inherit address prefixLength; });
    in
    {
      virtualisation.vlans = [ 1 ];
      networking.interfaces.eth1 = {
        ipv4.addresses = lib.mkForce (listed 24 ipv4);
        ipv6.addresses = lib.mkForce (listed 64 ipv6);
      };
    };

  machine =
    { config, ... }:
    {
      imports = [
        module
        (addresses [ "192.0.2.1" ] [ "2001:db8::1" ])
      ];
      virtualisation.memorySize = 4096;
      virtualisation.cores = 2;
      # As prelude.py says.
      environment.systemPackages = [
        pkgs.curl
        pkgs.git
        pkgs.postgresql
        pkgs.python3
        pkgs.sqlite
      ];
      services.opencode.defaults.path = [
        pkgs.bash
        pkgs.curl
        pkgs.git
        pkgs.gnutar
        pkgs.gzip
        pkgs.postgresql
        pkgs.procps
        pkgs.python3
        pkgs.ripgrep
        pkgs.util-linux
      ];
      # `prepare` makes again what NixOS has made: nothing.
      environment.etc."tmpfiles.d/opencode.conf".source = pkgs.writeText "opencode.conf" "";
    };

  # The boot starts no servers, nor what has their keys: the script does, when there are worktrees and keys.
  startedByScript =
    { config, ... }:
    let
      instances = lib.filterAttrs (_: instance: instance.enable) config.services.opencode.instances;
      keyed = lib.any (instance: instance.providers != { }) (lib.attrValues instances);
    in
    {
      systemd.services = lib.genAttrs (
        map (name: "opencode-${name}") (lib.attrNames instances ++ lib.optional keyed "keys")
      ) (_: { wantedBy = lib.mkForce [ ]; });
    };

  witness = {
    imports = [
      (addresses
        [ "192.0.2.10" "192.0.2.20" "192.0.2.30" ]
        [ "2001:db8::10" "2001:db8::20" "2001:db8::30" ]
      )
    ];
    networking.firewall.enable = false;
    environment.systemPackages = [
      pkgs.curl
      pkgs.openssl
      pkgs.python3
    ];
    systemd.services.upstream = {
      wantedBy = [ "multi-user.target" ];
      serviceConfig.ExecStart = "${lib.getExe pkgs.python3} ${./nixos/upstream.py}";
    };
    systemd.services.witness = {
      wantedBy = [ "multi-user.target" ];
      serviceConfig = {
        # Headers, and room for many of them: its buffer is cut into pieces of the first size.
        ExecStart = "${lib.getExe pkgs.tcpdump} -n -l -U --immediate-mode -i eth1 -Q in -s 256 -B 32768 'ip or ip6'";
        StandardOutput = "file:/run/arrived";
        # What it says of itself.
        StandardError = "append:/run/witness";
        Restart = "on-failure";
      };
    };
  };

  # The first host boots; the script may switch to the others.
  test =
    name: hostNames:
    pkgs.testers.runNixOSTest {
      inherit name;
      nodes.machine = {
        imports = [
          machine
          hosts.${lib.head hostNames}
        ]
        ++ lib.optional (lib.head hostNames != "boot") startedByScript;
        # Test machines cannot switch unless told so.
        system.switch.enable = lib.tail hostNames != [ ];
        specialisation = lib.genAttrs (lib.tail hostNames) (host: {
          configuration.imports = [ hosts.${host} ];
        });
      };
      nodes.witness = witness;
      testScript = "PROVIDER = ${builtins.toJSON (builtins.readFile ./provider.py)}\n" + lib.concatMapStrings builtins.readFile [
        ./nixos/environment.py
        ./prelude.py
        (./scenarios + "/${name}.py")
      ];
      # The script is put together from files that are read in another environment as well.
      skipTypeCheck = true;
      skipLint = true;
    };

  hostsOf =
    name:
    lib.splitString " " (
      lib.removePrefix "# host: " (
        lib.head (lib.splitString "\n" (builtins.readFile (./scenarios + "/${name}.py")))
      )
    );
  names = map (lib.removeSuffix ".py") (
    lib.filter (lib.hasSuffix ".py") (builtins.attrNames (builtins.readDir ./scenarios))
  );
  # Those without a host take no machine.
  onMachines = lib.filter (name: hostsOf name != [ "none" ]) names;
in
lib.listToAttrs (map (name: lib.nameValuePair "vm-${name}" (test name (hostsOf name))) onMachines)
