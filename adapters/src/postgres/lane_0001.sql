-- How far the logged records of a namespace's lanes have come, beside the data of whatever model. To go back by hand: only
-- together with the data.
CREATE SCHEMA IF NOT EXISTS {schema};

-- Up to which logged record of a lane the data is here; moved in the same transaction.
CREATE TABLE IF NOT EXISTS {schema}.cell (
  partition int PRIMARY KEY,
  -- Which connection of Prism may move it; another one that was left behind may not.
  session bigint NOT NULL,
  -- Whose log, which start of it, which number of the lane; null: the lane has not begun.
  directory_id bytea,
  epoch bigint,
  lane_seq bigint
);

-- Moves a lane's cell by exactly the records of one batch, or fails and the batch with it.
CREATE OR REPLACE FUNCTION {schema}.move_cell(
  of_partition int, of_session bigint, of_directory_id bytea, of_epoch bigint, before bigint, after bigint
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  UPDATE {schema}.cell SET epoch = of_epoch, lane_seq = after
  WHERE partition = of_partition AND session = of_session AND directory_id = of_directory_id AND lane_seq = before;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'the lane is not at % any more', before USING ERRCODE = 'PR001';
  END IF;
END $$;
