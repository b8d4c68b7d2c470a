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
      environment.systemPackages = [
        pkgs.curl
        pkgs.python3
      ];
      # What Debian's programs are in namespaces.
      services.opencode.defaults.path = [
        pkgs.bash
        pkgs.curl
        pkgs.python3
        pkgs.util-linux
      ];
      # Scripts start the servers, when there are worktrees. `prepare` makes again what NixOS has made: nothing.
      systemd.services = lib.mapAttrs' (
        name: _: lib.nameValuePair "opencode-${name}" { wantedBy = lib.mkForce [ ]; }
      ) config.services.opencode.instances;
      environment.etc."tmpfiles.d/opencode.conf".source = pkgs.writeText "opencode.conf" "";
    };

  witness = {
    imports = [
      (addresses
        [ "192.0.2.10" "192.0.2.20" "192.0.2.30" ]
        [ "2001:db8::10" "2001:db8::20" "2001:db8::30" ]
      )
    ];
    networking.firewall.enable = false;
    environment.systemPackages = [ pkgs.curl ];
    systemd.services.upstream = {
      wantedBy = [ "multi-user.target" ];
      serviceConfig.ExecStart = "${lib.getExe pkgs.python3} ${./nixos/upstream.py}";
    };
    systemd.services.witness = {
      wantedBy = [ "multi-user.target" ];
      serviceConfig = {
        ExecStart = "${lib.getExe pkgs.tcpdump} -n -l -U --immediate-mode -i eth1 -Q in 'ip or ip6'";
        StandardOutput = "file:/run/arrived";
        StandardError = "journal";
        Restart = "on-failure";
      };
    };
  };

  test =
    name: host:
    pkgs.testers.runNixOSTest {
      inherit name;
      nodes.machine.imports = [
        machine
        hosts.${host}
      ];
      nodes.witness = witness;
      testScript = lib.concatMapStrings builtins.readFile [
        ./nixos/environment.py
        ./prelude.py
        (./scenarios + "/${name}.py")
      ];
      # The script is put together from files that are read in another environment as well.
      skipTypeCheck = true;
      skipLint = true;
    };

  hostOf = file: lib.removePrefix "# host: " (lib.head (lib.splitString "\n" (builtins.readFile file)));
  # These take what a test here does not have: servers that the boot starts, and a specialisation for each other host.
  missing = [
    "08c-boot"
    "12-upgrade"
  ];
  names = lib.subtractLists missing (
    map (lib.removeSuffix ".py") (
      lib.filter (lib.hasSuffix ".py") (builtins.attrNames (builtins.readDir ./scenarios))
    )
  );
  tests = map (name: {
    name = "vm-${name}";
    host = hostOf (./scenarios + "/${name}.py");
    value = test name (hostOf (./scenarios + "/${name}.py"));
  }) names;
in
lib.listToAttrs (lib.filter ({ host, ... }: host != "none") tests)
