"""One file a reward, each a pure function of (completion, reference, params); `reward_service.registry` lists them."""
