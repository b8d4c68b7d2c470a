# docs/options.md, as one string: every option of the module, from its own declaration.
#
#   NIXPKGS=… nix-instantiate --eval --strict --json nixos/options-doc.nix
let
  lib = import ./lib.nix;
  inherit (lib)
    concatMapStrings
    concatStringsSep
    filter
    hasInfix
    hasPrefix
    optionalString
    ;

  inherit (import ./stub { inherit lib; } [ ]) options;

  documented = filter (option: option.visible && !option.internal) (
    lib.optionAttrSetToDocList { services.opencode = options.services.opencode; }
  );

  # Roles of NixOS' manual, which Markdown elsewhere has not.
  plain = builtins.replaceStrings [ "{option}" "{manpage}" ] [ "" "" ];

  value =
    label: shown:
    let
      text = lib.removeSuffix "\n" shown.text;
    in
    if hasInfix "\n" text then
      "${label}:\n\n```nix\n${text}\n```\n\n"
    else
      "${label}: `` ${text} ``\n\n";

  entry = option: ''
    ### `${option.name}`

    ${lib.trim (plain (option.description.text or option.description))}

    Type: ${option.type}

    ${optionalString (option ? default) (value "Default" option.default)}${
      optionalString (option ? example) (value "Example" option.example)
    }'';

  prefix = "services.opencode.instances.<name>";
  # Heading -> which options stand below it; the first that fits.
  sections = [
    {
      title = "The content of `opencode.json`";
      has = hasPrefix "${prefix}.config.";
    }
    {
      title = "Instances";
      has = hasPrefix prefix;
    }
    {
      title = "The module";
      has = _: true;
    }
  ];
  sectionOf = option: (lib.findFirst (section: section.has option.name) null sections).title;

  section =
    title:
    "## ${title}\n\n"
    + concatMapStrings entry (filter (option: sectionOf option == title) documented);
in
concatStringsSep "" (
  [
    ''
      # Options of the NixOS module

      Written from the module itself. See [nixos.md](nixos.md) for how they go together. What is said of an instance holds for
      `services.opencode.defaults` as well.

    ''
  ]
  ++ map section [
    "The module"
    "Instances"
    "The content of `opencode.json`"
  ]
)
