import pytest

from backendai_mgr.domain.passwords import hash_password, is_hashed, verify_password

SALT = bytes(range(16))


def test_a_stored_password_is_verified_and_another_is_not():
    stored = hash_password("wJalrXUt", SALT)
    assert is_hashed(stored)
    assert stored.startswith("scrypt$16384$8$1$AAECAwQFBgcICQoLDA0ODw==$")
    assert verify_password("wJalrXUt", stored)
    assert not verify_password("wJalrXUT", stored)
    assert not verify_password("", stored)


def test_equal_passwords_of_different_salts_are_stored_differently():
    assert hash_password("same", SALT) != hash_password("same", SALT[::-1])


def test_a_cost_that_was_stored_is_the_cost_that_is_verified():
    # RFC 7914, second vector, cut to 16 bytes of key: N = 1024, r = 8, p = 16.
    stored = "scrypt$1024$8$16$TmFDbA==$/bq+HJ00cgB4VucZDQHp/g=="
    assert verify_password("password", stored) is True


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "plain",
        "$2b$12$bcrypt",
        "scrypt$x$8$1$AA==$AA==",
        "scrypt$16384$8$1$?$AA==",
        "scrypt$3$8$1$AA==$AA==",
        "scrypt$1048576$64$1$AA==$AA==",
        "scrypt$16384$8$1$AA==$",
    ],
)
def test_other_texts_verify_nothing(stored):
    assert not verify_password("", stored)
    assert not verify_password("x", stored)
