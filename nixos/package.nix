# Object and daemon from source, as `cargo xtask test-offline` builds them.
#
# bpf-linker has to be of the version that xtask/src/build_ebpf.rs names or a newer one, with the LLVM of rustc: it reads that
# compiler's bitcode. nixpkgs' own is built with that LLVM.
{
  lib,
  stdenv,
  rustPlatform,
  buildPackages,
  symlinkJoin,
  bpf-linker,
  installShellFiles,
}:
let
  oldestLinker = "0.10.3";

  # No compiler ships `core` for eBPF, so it is compiled as well: that takes its sources, …
  # The compiler runs where the package is built.
  inherit (buildPackages) rustc;
  compiler = rustc.override {
    sysroot = symlinkJoin {
      name = "rust-sysroot-with-sources";
      paths = [ rustc.unwrapped ];
      postBuild = ''
        mkdir -p $out/lib/rustlib/src/rust
        ln -s ${rustPlatform.rustLibSrc} $out/lib/rustlib/src/rust/library
      '';
    };
  };

  # … and the crates of the standard library's workspace beside our own. The configuration from importCargoLock has the
  # directory's name.
  cargoDeps = symlinkJoin {
    name = "cargo-vendor-dir";
    paths = [ (rustPlatform.importCargoLock { lockFile = ../Cargo.lock; }) ];
    postBuild = ''
      for crate in ${rustPlatform.rustVendorSrc}/*; do
        [ -e "$out/''${crate##*/}" ] || ln -s "$crate" "$out/"
      done
    '';
  };

  completion = shell: "--${shell} <($out/bin/opencode-egress completions ${shell})";
in
rustPlatform.buildRustPackage {
  pname = "opencode-egress";
  inherit ((lib.importTOML ../Cargo.toml).workspace.package) version;

  src = lib.fileset.toSource {
    root = ../.;
    # `cargo xtask test-offline` builds from the same.
    fileset = lib.fileset.unions (map (name: ../. + "/${name}") (lib.importJSON ./package-sources.json));
  };
  inherit cargoDeps;
  # For the flake's shell.
  passthru = { inherit compiler; };

  nativeBuildInputs = [
    (lib.throwIf (lib.versionOlder bpf-linker.version oldestLinker)
      "opencode-egress: this nixpkgs has bpf-linker ${bpf-linker.version}, and the eBPF programs need ${oldestLinker} or newer. Take a newer nixpkgs, or the package that the flake builds with its own: services.opencode.egress.package = inputs.opencode-egress.packages.\${pkgs.stdenv.hostPlatform.system}.default;"
      bpf-linker
    )
    installShellFiles
  ];
  env.OPENCODE_EGRESS_RUSTC = lib.getExe' compiler "rustc";
  preBuild = "cargo xtask build-ebpf --offline";

  cargoBuildFlags = [ "--package=opencode-egress" ];
  # The other tiers load programs into a kernel.
  cargoTestFlags = [ "--lib" ];

  postInstall = ''
    install -Dm644 dist/opencode-egress.catalog -t $out/lib/systemd/catalog
  ''
  + lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    $out/bin/opencode-egress man man
    installManPage man/*
    installShellCompletion --cmd opencode-egress ${completion "bash"} ${completion "fish"} ${completion "zsh"}
  '';

  meta = {
    description = "Confines headless opencode servers by eBPF programs on their units' cgroups";
    mainProgram = "opencode-egress";
    license = [
      lib.licenses.mit
      lib.licenses.asl20
    ];
    platforms = lib.platforms.linux;
  };
}
