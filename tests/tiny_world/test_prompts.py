from flash_grpo.tiny_world.prompts import from_shapes


def test_the_tiny_world_asks_for_all_of_its_captions():
    assert len(set(from_shapes().train)) == 32 == len(from_shapes().test)
