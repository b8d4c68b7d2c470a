# How `services.opencode.defaults` reaches the instances: each value that is set there becomes a definition of each instance,
# at a priority below whatever the instance says, at the depth at which the option's type merges.
{ lib }:
let
  inherit (lib)
    filterAttrs
    isAttrs
    isDerivation
    isOption
    mapAttrs
    mkOption
    mkOverride
    types
    ;

  # Below mkDefault (1000), above an option's own default (1500).
  priority = 1250;
  ownDefault = (lib.mkOptionDefault null).priority;

  isSet = value: isAttrs value && !isDerivation value && !(value ? _type);

  # A value as definitions. Sets are taken apart where the type merges them by name; anything else is one value.
  definition =
    type: value:
    let
      element = type.nestedTypes.elemType or types.raw;
      options = type.getSubOptions [ ];
      rest = type.nestedTypes.freeformType or types.raw;
      field =
        name: item:
        if isOption (options.${name} or null) then
          definition options.${name}.type item
        else
          definition (rest.nestedTypes.elemType or rest) item;
      # What is there by default is there in the instance as well.
      chosen = name: item: !((options.${name} or { }) ? default && options.${name}.default == item);
    in
    if type.name == "nullOr" && value != null then
      definition element value
    else if isSet value && (type.name == "attrsOf" || type.name == "lazyAttrsOf") then
      mapAttrs (_: definition element) value
    else if isSet value && type.name == "submodule" then
      mapAttrs field (filterAttrs chosen value)
    else if isSet value && lib.elem type.name [ "json" "anything" "attrs" ] then
      mapAttrs (_: definition type) value
    else
      mkOverride priority value;

  # The options of a module, or of a part of it, that somebody set, as definitions.
  collect =
    options:
    let
      isSetByUser = option: option.isDefined && option.highestPrio < ownDefault;
    in
    mapAttrs (
      _: option: if isOption option then definition option.type option.value else collect option
    ) (filterAttrs (_: option: !isOption option || isSetByUser option) options);
in
{
  # The part of `defaults` that knows what is set in it.
  module =
    { options, ... }:
    {
      options.definitions = mkOption {
        type = types.raw;
        internal = true;
        readOnly = true;
        default = collect (removeAttrs options [ "_module" "definitions" ]);
      };
    };

  definitions = defaults: defaults.definitions;
}
