# The overlay and the flake on two systems, over a nixpkgs of which only `lib` is real. Each test: { got, wanted }.
{ lib }:
let
  inherit (lib) head;
  overlay = import ../../overlay.nix;

  # What the overlay takes from nixpkgs.
  stub =
    system: final:
    let
      stored = name: {
        type = "derivation";
        inherit name;
        outPath = "/nix/store/${system}-${name}";
      };
    in
    # What the module takes, beside what is a system's own.
    import ../../stub/pkgs.nix { inherit lib; }
    // {
      inherit lib;
      callPackage =
        file: overrides:
        let
          function = import file;
        in
        function (builtins.intersectAttrs (builtins.functionArgs function) final // overrides);
      stdenv = {
        buildPlatform.canExecute = _: true;
        hostPlatform = { inherit system; };
      };
      opencode = stored "opencode";
      bpf-linker = stored "bpf-linker" // { version = "0.10.3"; };
      installShellFiles = stored "installShellFiles";
      symlinkJoin = arguments: stored arguments.name // arguments;
      buildPackages.rustc = {
        unwrapped = stored "rustc";
        override = { sysroot }: sysroot;
      };
      rustPlatform = {
        rustLibSrc = stored "rust-lib-src";
        rustVendorSrc = stored "rust-vendor-src";
        importCargoLock = { lockFile }: stored (baseNameOf lockFile);
        # With structured attributes, the environment is not the derivation's own.
        buildRustPackage =
          arguments: removeAttrs arguments [ "passthru" ] // arguments.passthru // { inherit system; };
      };
      writeText = name: text: stored name // { inherit text; };
      writeShellScriptBin = name: text: stored name // { inherit text; };
      runCommand = name: environment: _: environment // { inherit name; };
      mkShell = arguments: arguments;
      testers.runNixOSTest = arguments: arguments;
      curl = stored "curl";
      gnutar = stored "gnutar";
      gzip = stored "gzip";
      postgresql = stored "postgresql";
      procps = stored "procps";
      python3 = stored "python3" // { meta.mainProgram = "python3"; };
      sqlite = stored "sqlite";
      tcpdump = stored "tcpdump" // { meta.mainProgram = "tcpdump"; };
      util-linux = stored "util-linux";
      clippy = stored "clippy";
      rustfmt = stored "rustfmt";
      nixfmt-tree = stored "nixfmt-tree";
    };
  nixpkgs = system: lib.makeExtensible (stub system);
  extended = system: (nixpkgs system).extend overlay;
  systems = [
    "aarch64-linux"
    "x86_64-linux"
  ];

  flake = (import ../../../flake.nix).outputs {
    self = flake;
    nixpkgs = {
      inherit lib;
      legacyPackages = lib.genAttrs systems nixpkgs;
    };
  };

  # `cargo xtask config-test` runs these, with the real server.
  wrapperText = system: file: lib.replaceStrings [ "@system@" ] [ system ] (builtins.readFile file);

  config.model = "p/m";
  text = ''
    {
      "$schema": "https://opencode.ai/config.json",
      "model": "p/m"
    }
  '';

  perSystem =
    system:
    let
      pkgs = extended system;
      inherit (pkgs.lib.opencode) wrapOpencode wrapOpenCode;
      # The script, which comes first, and what becomes of the rest.
      wrapper = arguments: (head (wrapOpencode (arguments // { inherit config; })).paths).text;
      joined =
        wrapped:
        {
          inherit (wrapped) name postBuild meta;
          paths = map toString wrapped.paths;
        };
      other = stored "other";
      stored = name: {
        type = "derivation";
        inherit name;
        outPath = "/nix/store/${name}";
      };
    in
    lib.mapAttrs' (name: lib.nameValuePair "${name} on ${system}") {
      "the package" = {
        got = {
          inherit (pkgs.opencode-egress) system pname;
          inherit (pkgs.opencode-egress.env) OPENCODE_EGRESS_RUSTC;
        };
        wanted = {
          inherit system;
          pname = "opencode-egress";
          OPENCODE_EGRESS_RUSTC = "/nix/store/${system}-rust-sysroot-with-sources/bin/rustc";
        };
      };
      mkConfig = {
        got = (pkgs.lib.opencode.mkConfig config).text;
        wanted = text;
      };
      "the rest of lib" = {
        got = pkgs.lib.toUpper "a";
        wanted = "A";
      };
      wrapOpencode = {
        got = wrapper { };
        wanted = wrapperText system ./wrapper/opencode.sh;
      };
      "wrapOpencode without the worktree's files" = {
        got = wrapper { projectConfig = false; };
        wanted = wrapperText system ./wrapper/opencode-alone.sh;
      };
      "wrapOpencode keeps the package's other files" = {
        got = joined (wrapOpencode {
          inherit config;
          package = other;
        });
        wanted = {
          name = "opencode";
          paths = [
            "/nix/store/${system}-opencode"
            "/nix/store/other"
          ];
          postBuild = "";
          meta.mainProgram = "opencode";
        };
      };
      "wrapOpencode under a name leaves no program without the configuration" = {
        got = joined (wrapOpencode {
          inherit config;
          name = "chief";
        });
        wanted = {
          name = "chief";
          paths = [
            "/nix/store/${system}-chief"
            "/nix/store/${system}-opencode"
          ];
          postBuild = "rm $out/bin/opencode";
          meta.mainProgram = "chief";
        };
      };
      "wrapOpenCode is the same" = {
        got = joined (wrapOpenCode {
          name = "chief";
          modules = [ { opencode = config; } ];
          opencode = other;
        });
        wanted = joined (wrapOpencode {
          name = "chief";
          inherit config;
          package = other;
        });
      };
      "the flake's outputs" = {
        got = [
          flake.packages.${system}.default.system
          flake.packages.${system}.opencode-egress.system
          flake.checks.${system}.opencode-egress.system
          flake.devShells.${system}.default.OPENCODE_EGRESS_RUSTC
          flake.formatter.${system}.outPath
        ];
        wanted = [
          system
          system
          system
          pkgs.opencode-egress.env.OPENCODE_EGRESS_RUSTC
          "/nix/store/${system}-nixfmt-tree"
        ];
      };
    };

  tests = system: lib.filterAttrs (name: _: lib.hasPrefix "vm-" name) flake.checks.${system};

  # What is wrong with a NixOS test, as far as that shows without NixOS: both machines evaluate, the script is whole.
  scenario =
    name: test:
    let
      anything = lib.mkOption { type = lib.types.attrsOf lib.types.anything; };
      modules = lib.types.attrsOf (
        lib.types.submodule { options.configuration = lib.mkOption { type = lib.types.deferredModule; }; }
      );
      system =
        module:
        lib.evalModules {
          modules = [
            ../../stub/options.nix
            {
              config._module.args.pkgs = extended "x86_64-linux";
              options.virtualisation = anything;
              options.networking.interfaces = anything;
              options.system.switch.enable = lib.mkEnableOption "switching";
              options.specialisation = lib.mkOption {
                type = modules;
                default = { };
              };
            }
            module
          ];
        };
      booted = system test.nodes.machine;
      machine = booted.config;
      others = lib.mapAttrsToList (
        _: other: (booted.extendModules { modules = [ other.configuration ]; }).config
      ) machine.specialisation;
      witness = (system test.nodes.witness).config;
      started = lib.filterAttrs (
        unit: service: lib.hasPrefix "opencode-" unit && unit != "opencode-egress" && service.wantedBy != [ ]
      ) machine.systemd.services;
    in
    map (problem: "${name}: ${problem}") (
      lib.concatMap (
        { assertions, ... }: map (failed: failed.message) (lib.filter (one: !one.assertion) assertions)
      ) ([ machine ] ++ others)
      ++ lib.optional (machine.systemd.services ? opencode-off) "an instance that is turned off has a unit"
      ++ lib.optional (started != { } && name != "vm-08c-boot") "servers start by themselves"
      ++ lib.optional (started == { } && name == "vm-08c-boot") "the boot starts no server"
      ++ lib.optional (
        lib.hasInfix "\n    switch_to(" test.testScript && others == [ ]
      ) "the script has nothing to switch to"
      ++ lib.optional (
        !lib.all (other: other.services.opencode.instances.a.networkIsolation.enable) others
      ) "a host to switch to is the one that boots"
      ++ lib.optional (machine.networking.interfaces.eth1.ipv4.addresses == [ ]) "the machine has no address"
      ++ lib.optional (!witness.systemd.services ? upstream) "the second host serves nothing"
      ++ lib.optional (
        !lib.all (part: lib.hasInfix part test.testScript) [
          "def arrived"
          "def prepare"
          "# host: "
        ]
      ) "the script is not whole"
    );
in
lib.mergeAttrsList (map perSystem systems)
// {
  "the scenarios' hosts evaluate in their NixOS tests, on x86_64-linux" = {
    got = lib.concatLists (lib.mapAttrsToList scenario (tests "x86_64-linux"));
    wanted = [ ];
  };
  "there is one for each scenario that takes a machine" = {
    got = {
      some = lib.all (name: (tests "x86_64-linux") ? ${name}) [
        "vm-01-lifecycle"
        "vm-08c-boot"
        "vm-12-upgrade"
      ];
      evaluation = (tests "x86_64-linux") ? vm-11-evaluation;
      aarch64 = tests "aarch64-linux";
    };
    wanted = {
      some = true;
      evaluation = false;
      aarch64 = { };
    };
  };
  "the flake's lib" = {
    got = flake.lib.opencode.mkConfigFromAttrs config;
    wanted = text;
  };
  "the flake's module" = {
    got = toString flake.nixosModules.default;
    wanted = toString ../../.;
  };
}
