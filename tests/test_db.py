import pytest
import sqlalchemy as sa

from coop.db import Database


def test_a_unit_of_work_is_all_or_nothing(database: Database):
    table = sa.Table("probe", sa.MetaData(), sa.Column("n", sa.Integer))
    with database.unit_of_work() as connection:
        table.create(connection)
        connection.execute(table.insert(), {"n": 1})
    with pytest.raises(ZeroDivisionError), database.unit_of_work() as connection:  # noqa: PT012
        connection.execute(table.insert(), {"n": 2})
        _ = 1 // 0
    with database.reading() as connection:
        assert connection.execute(sa.select(table.c.n)).scalars().all() == [1]
